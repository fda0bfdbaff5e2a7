// SPDX-License-Identifier: MIT
#include "module.h"

#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include "arch/arch.h"
#ifdef __x86_64__
#include "arch/x86_64.h"
#endif

static struct pc_state *state_of(PyObject *self)
{
	return pc_state_of_type(Py_TYPE(self));
}

static PyObject *fail_with(PyObject *self, const struct kc_error *err)
{
	return pc_raise(state_of(self), err, NULL);
}

/* The core's object; NULL with an exception where __init__ was not called. */
static struct kc_kvm *kvm_of(PyObject *self)
{
	struct kc_kvm *kvm = ((struct pc_kvm *)self)->kvm;

	if (!kvm)
		PyErr_SetString(state_of(self)->errors[PC_ClosedError],
				"the Kvm object was never opened: its __init__ did not succeed");
	return kvm;
}

/* The device's file descriptor; -1 with an exception. */
static int fd_of(PyObject *self)
{
	struct kc_kvm *kvm = kvm_of(self);
	struct kc_error err;
	int fd;

	if (!kvm)
		return -1;
	fd = kc_kvm_fd(kvm, &err);
	if (fd < 0)
		fail_with(self, &err);
	return fd;
}

static int init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "path", NULL };
	struct pc_kvm *object = (struct pc_kvm *)self;
	struct kc_kvm *kvm, *old = object->kvm;
	PyObject *path = NULL;
	struct kc_error err;
	int failed;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O&:Kvm", names, PyUnicode_FSConverter,
					 &path))
		return -1;
	failed = kc_kvm_open(path ? PyBytes_AS_STRING(path) : "/dev/kvm", &kvm, &err);
	Py_XDECREF(path);
	if (failed) {
		fail_with(self, &err);
		return -1;
	}
	object->kvm = kvm;
	kc_kvm_put(old);
	return 0;
}

static void dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	kc_kvm_put(((struct pc_kvm *)self)->kvm);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyObject *repr(PyObject *self)
{
	struct kc_kvm *kvm = ((struct pc_kvm *)self)->kvm;

	if (!kvm)
		return PyUnicode_FromString("<Kvm, not open>");
	return PyUnicode_FromFormat("<Kvm %s %s%s>", kvm->path, kc_arch_backend(),
				    atomic_load(&kvm->closed) ? " closed" : "");
}

/* ---- properties ---- */

static PyObject *get_path(PyObject *self, void *unused)
{
	struct kc_kvm *kvm = kvm_of(self);

	return kvm ? PyUnicode_DecodeFSDefault(kvm->path) : NULL;
}

static PyObject *get_api_version(PyObject *self, void *unused)
{
	int fd = fd_of(self), version;
	struct kc_error err;

	if (fd < 0)
		return NULL;
	version = ioctl(fd, KVM_GET_API_VERSION, 0);
	if (version < 0) {
		kc_fail_os(&err, "KVM_GET_API_VERSION");
		return fail_with(self, &err);
	}
	return PyLong_FromLong(version);
}

static PyObject *get_arch(PyObject *self, void *unused)
{
	return PyUnicode_FromString(kc_arch_name);
}

static PyObject *get_backend(PyObject *self, void *unused)
{
	return PyUnicode_FromString(kc_arch_backend());
}

static PyObject *get_vcpu_mmap_size(PyObject *self, void *unused)
{
	struct kc_kvm *kvm = kvm_of(self);

	return kvm ? PyLong_FromSize_t(kvm->vcpu_mmap_size) : NULL;
}

static PyObject *get_closed(PyObject *self, void *unused)
{
	struct kc_kvm *kvm = ((struct pc_kvm *)self)->kvm;

	return PyBool_FromLong(!kvm || atomic_load(&kvm->closed));
}

/* ---- what the device says ---- */

static PyObject *check_extension(PyObject *self, PyObject *arg)
{
	struct kc_kvm *kvm = kvm_of(self);
	struct kc_error err;
	uint64_t cap;
	int result;

	if (fd_of(self) < 0 || pc_uint(arg, "a capability", INT32_MAX, &cap))
		return NULL;
	result = kc_kvm_check_extension(kvm, (unsigned long)cap, &err);
	return result < 0 ? fail_with(self, &err) : PyLong_FromLong(result);
}

#ifdef __x86_64__

static PyObject *supported_cpuid(PyObject *self, PyObject *unused)
{
	struct kc_kvm *kvm = kvm_of(self);
	const struct kvm_cpuid2 *table;
	struct kc_error err;
	PyObject *list;

	if (fd_of(self) < 0)
		return NULL;
	table = kc_x86_supported_cpuid(kvm, &err);
	if (!table)
		return fail_with(self, &err);
	list = PyList_New(table->nent);
	for (uint32_t i = 0; list && i < table->nent; i++) {
		const struct kvm_cpuid_entry2 *entry = &table->entries[i];
		PyObject *leaf = Py_BuildValue("(IIIIIII)", entry->function, entry->index,
					       entry->flags, entry->eax, entry->ebx, entry->ecx,
					       entry->edx);

		if (!leaf)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, i, leaf);
	}
	return list;
}

/* Ask twice: with no room the kernel fails and says how much it needs. */
static struct kvm_msr_list *msr_list(int fd, unsigned long request, const char *name,
				     struct kc_error *err)
{
	struct kvm_msr_list empty = { .nmsrs = 0 };
	kc_auto_free struct kvm_msr_list *list = NULL;

	if (ioctl(fd, request, &empty) && errno != E2BIG) {
		kc_fail_os(err, name);
		return NULL;
	}
	list = calloc(1, sizeof(*list) + empty.nmsrs * sizeof(list->indices[0]));
	if (!list) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	list->nmsrs = empty.nmsrs;
	if (ioctl(fd, request, list)) {
		kc_fail_os(err, name);
		return NULL;
	}
	return kc_move(list);
}

static PyObject *index_list(PyObject *self, unsigned long request, const char *name)
{
	int fd = fd_of(self);
	kc_auto_free struct kvm_msr_list *msrs = NULL;
	struct kc_error err;
	PyObject *list;

	if (fd < 0)
		return NULL;
	msrs = msr_list(fd, request, name, &err);
	if (!msrs)
		return fail_with(self, &err);
	list = PyList_New(msrs->nmsrs);
	for (uint32_t i = 0; list && i < msrs->nmsrs; i++) {
		PyObject *index = PyLong_FromUnsignedLong(msrs->indices[i]);

		if (!index)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, i, index);
	}
	return list;
}

static PyObject *msr_index_list(PyObject *self, PyObject *unused)
{
	return index_list(self, KVM_GET_MSR_INDEX_LIST, "KVM_GET_MSR_INDEX_LIST");
}

static PyObject *msr_feature_index_list(PyObject *self, PyObject *unused)
{
	return index_list(self, KVM_GET_MSR_FEATURE_INDEX_LIST, "KVM_GET_MSR_FEATURE_INDEX_LIST");
}

static PyObject *get_msr_feature(PyObject *self, PyObject *arg)
{
	struct {
		struct kvm_msrs header;
		struct kvm_msr_entry entry;
	} msrs = { .header.nmsrs = 1 };
	struct kc_error err;
	char what[64];
	uint64_t index;
	int fd, count;

	if (pc_uint(arg, "an MSR's number", UINT32_MAX, &index))
		return NULL;
	fd = fd_of(self);
	if (fd < 0)
		return NULL;
	msrs.entry.index = (uint32_t)index;
	count = ioctl(fd, KVM_GET_MSRS, &msrs);
	if (count == 1)
		return PyLong_FromUnsignedLongLong(msrs.entry.data);
	if (count == 0) /* how the kernel says that it stopped at the first one */
		errno = EINVAL;
	snprintf(what, sizeof(what), "KVM_GET_MSRS: no such feature MSR %#x", msrs.entry.index);
	kc_fail_os(&err, what);
	return fail_with(self, &err);
}

#else

static PyObject *x86_only(PyObject *self, const char *name)
{
	struct kc_error err;

	kc_fail(&err, KC_ERR_UNSUPPORTED, "%s: only x86 has it", name);
	return fail_with(self, &err);
}

static PyObject *supported_cpuid(PyObject *self, PyObject *unused)
{
	return x86_only(self, "KVM_GET_SUPPORTED_CPUID");
}

static PyObject *msr_index_list(PyObject *self, PyObject *unused)
{
	return x86_only(self, "KVM_GET_MSR_INDEX_LIST");
}

static PyObject *msr_feature_index_list(PyObject *self, PyObject *unused)
{
	return x86_only(self, "KVM_GET_MSR_FEATURE_INDEX_LIST");
}

static PyObject *get_msr_feature(PyObject *self, PyObject *unused)
{
	return x86_only(self, "KVM_GET_MSRS");
}

#endif

/* ---- life ---- */

static PyObject *create_vm(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "type", "tick_frequency", NULL };
	struct kc_kvm *kvm = kvm_of(self);
	PyObject *type_arg = NULL, *frequency_arg = NULL;
	uint64_t type = 0, tick_frequency = 1000000000000;

	if (!kvm ||
	    !PyArg_ParseTupleAndKeywords(args, kwargs, "|$OO:create_vm", names, &type_arg,
					 &frequency_arg) ||
	    (type_arg && pc_uint(type_arg, "type", ULONG_MAX, &type)) ||
	    (frequency_arg && pc_u64(frequency_arg, "tick_frequency", &tick_frequency)))
		return NULL;
	return pc_vm_new(state_of(self), kvm, (unsigned long)type, tick_frequency);
}

static PyObject *fileno_(PyObject *self, PyObject *unused)
{
	int fd = fd_of(self);

	return fd < 0 ? NULL : PyLong_FromLong(fd);
}

static PyObject *close_(PyObject *self, PyObject *unused)
{
	struct kc_kvm *kvm = ((struct pc_kvm *)self)->kvm;

	if (kvm)
		kc_kvm_close(kvm);
	Py_RETURN_NONE;
}

static PyObject *enter(PyObject *self, PyObject *unused)
{
	return fd_of(self) < 0 ? NULL : Py_NewRef(self);
}

static PyObject *exit_(PyObject *self, PyObject *args)
{
	return close_(self, NULL);
}

static PyMethodDef methods[] = {
	{ "check_extension", check_extension, METH_O, DOC_Kvm_check_extension },
	{ "supported_cpuid", supported_cpuid, METH_NOARGS, DOC_Kvm_supported_cpuid },
	{ "msr_index_list", msr_index_list, METH_NOARGS, DOC_Kvm_msr_index_list },
	{ "msr_feature_index_list", msr_feature_index_list, METH_NOARGS,
	  DOC_Kvm_msr_feature_index_list },
	{ "get_msr_feature", get_msr_feature, METH_O, DOC_Kvm_get_msr_feature },
	{ "create_vm", (PyCFunction)(void (*)(void))create_vm, METH_VARARGS | METH_KEYWORDS,
	  DOC_Kvm_create_vm },
	{ "fileno", fileno_, METH_NOARGS, DOC_Kvm_fileno },
	{ "close", close_, METH_NOARGS, DOC_Kvm_close },
	{ "__enter__", enter, METH_NOARGS, DOC_Kvm___enter__ },
	{ "__exit__", exit_, METH_VARARGS, DOC_Kvm___exit__ },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef properties[] = {
	{ "path", get_path, NULL, DOC_Kvm_path, NULL },
	{ "api_version", get_api_version, NULL, DOC_Kvm_api_version, NULL },
	{ "arch", get_arch, NULL, DOC_Kvm_arch, NULL },
	{ "backend", get_backend, NULL, DOC_Kvm_backend, NULL },
	{ "vcpu_mmap_size", get_vcpu_mmap_size, NULL, DOC_Kvm_vcpu_mmap_size, NULL },
	{ "closed", get_closed, NULL, DOC_Kvm_closed, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot slots[] = {
	{ Py_tp_doc, (void *)DOC_Kvm }, { Py_tp_new, PyType_GenericNew },
	{ Py_tp_init, init },		{ Py_tp_dealloc, dealloc },
	{ Py_tp_repr, repr },		{ Py_tp_methods, methods },
	{ Py_tp_getset, properties },	{ 0, NULL },
};

static PyType_Spec spec = {
	.name = "kvmcpu._kvm.Kvm",
	.basicsize = sizeof(struct pc_kvm),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = slots,
};

int pc_kvm_init(PyObject *module, struct pc_state *state)
{
	state->Kvm = pc_add_type(module, &spec, NULL);
	return state->Kvm ? 0 : -1;
}
