// SPDX-License-Identifier: MIT
#include "vm_parts.h"

#include <stddef.h>
#include <string.h>
#include <structmember.h>

/* ---- hooks: the core asks Python ---- */

struct pc_vcpu *pc_vm_vcpu(struct pc_vm *vm, const struct kc_vcpu *vcpu)
{
	for (size_t i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpus[i]->vcpu == vcpu)
			return vm->vcpus[i];
	return NULL;
}

static int ask_memory_mode(PyObject *check, struct kc_error *err)
{
	PyObject *answer = PyObject_CallNoArgs(check);
	const char *text;
	int failed = 0;

	if (!answer)
		return pc_callback_failed(err);
	if (PyUnicode_Check(answer)) {
		text = PyUnicode_AsUTF8(answer);
		failed = text ? kc_fail(err, KC_ERR_STATE, "%s", text) : pc_callback_failed(err);
	} else if (answer != Py_None) {
		PyErr_Format(PyExc_TypeError, "memory_mode_check returned %R: it is None or a str",
			     answer);
		failed = pc_callback_failed(err);
	}
	Py_DECREF(answer);
	return failed;
}

static int memory_mode_hook(void *opaque, struct kc_error *err)
{
	struct pc_callback callback = { .keep_error = false };
	struct pc_vm *self = opaque;
	PyObject *check;
	int failed = 0;

	pc_enter_python(&callback);
	check = Py_XNewRef(self->memory_mode_check);
	if (check)
		failed = ask_memory_mode(check, err);
	Py_XDECREF(check);
	pc_leave_python(&callback);
	return failed;
}

static int ask_address(PyObject *hook, PyObject *vcpu, uint64_t *address, uint32_t size,
		       bool is_write)
{
	PyObject *stack[5] = {
		NULL,
		vcpu,
		PyLong_FromUnsignedLongLong(*address),
		PyLong_FromUnsignedLong(size),
		is_write ? Py_True : Py_False,
	};
	PyObject *answer = NULL;
	int failed = -1;

	if (stack[2] && stack[3])
		answer = PyObject_Vectorcall(hook, stack + 1, 4 | PY_VECTORCALL_ARGUMENTS_OFFSET,
					     NULL);
	if (answer)
		failed = pc_u64(answer, "the address that address_hook returns", address);
	Py_XDECREF(answer);
	Py_XDECREF(stack[2]);
	Py_XDECREF(stack[3]);
	return failed;
}

static int redirect_hook(void *opaque, struct kc_vcpu *vcpu, uint64_t *address, uint32_t size,
			 bool is_write, struct kc_error *err)
{
	struct pc_callback callback = { .keep_error = false };
	struct pc_vm *self = opaque;
	PyObject *hook, *object;
	int failed = 0;

	pc_enter_python(&callback);
	hook = Py_XNewRef(self->address_hook);
	if (hook) {
		object = (PyObject *)pc_vm_vcpu(self, vcpu);
		object = Py_NewRef(object ? object : Py_None);
		failed = ask_address(hook, object, address, size, is_write);
		if (failed)
			failed = pc_callback_failed(err);
		Py_DECREF(object);
		Py_DECREF(hook);
	}
	pc_leave_python(&callback);
	return failed;
}

/* ---- life ---- */

PyObject *pc_vm_new(struct pc_state *state, struct kc_kvm *kvm, unsigned long type,
		    uint64_t tick_frequency)
{
	struct pc_vm *self = (struct pc_vm *)state->VM->tp_alloc(state->VM, 0);
	struct kc_error err;
	struct pc_gil gil;

	if (!self)
		return NULL;
	state->trace_used = true;
	kc_kvm_get(kvm); /* the caller's object may be closed meanwhile */
	pc_release(&gil, NULL);
	self->vm = kc_vm_create(kvm, type, tick_frequency, state->trace, &err);
	kc_kvm_put(kvm);
	pc_acquire(&gil);
	if (!self->vm) {
		Py_DECREF(self);
		return pc_raise(state, &err, NULL);
	}
	self->vm->hooks.opaque = self;
	self->vm->hooks.memory_mode = memory_mode_hook;
	self->vm->hooks.redirect = redirect_hook;
	return (PyObject *)self;
}

static void close_vm(struct pc_vm *self)
{
	struct pc_gil gil;

	pc_release(&gil, NULL);
	kc_vm_close(self->vm);
	pc_acquire(&gil);
}

static int traverse(PyObject *self, visitproc visit, void *arg)
{
	struct pc_vm *vm = (struct pc_vm *)self;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(vm->memory_mode_check);
	Py_VISIT(vm->address_hook);
	Py_VISIT(vm->queue);
	return pc_devices_traverse(vm, visit, arg);
}

/* The devices stay, as the bus borrows them: they drop what they hold by themselves. */
static int clear(PyObject *self)
{
	struct pc_vm *vm = (struct pc_vm *)self;

	if (vm->vm) {
		atomic_store(&vm->vm->hooks.has_memory_mode, false);
		atomic_store(&vm->vm->hooks.has_redirect, false);
	}
	Py_CLEAR(vm->memory_mode_check);
	Py_CLEAR(vm->address_hook);
	if (vm->queue)
		((struct pc_queue *)vm->queue)->vm = NULL;
	Py_CLEAR(vm->queue);
	return 0;
}

static void dealloc(PyObject *self)
{
	struct pc_vm *vm = (struct pc_vm *)self;
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	if (vm->weakrefs)
		PyObject_ClearWeakRefs(self);
	clear(self);
	if (vm->vm) {
		close_vm(vm);
		/* A vCPU of the core may keep it, but nothing of ours. */
		vm->vm->hooks.opaque = NULL;
		kc_vm_put(vm->vm);
	}
	PyMem_Free(vm->vcpus);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyObject *repr(PyObject *self)
{
	struct pc_vm *vm = (struct pc_vm *)self;

	if (atomic_load(&vm->vm->closed))
		return PyUnicode_FromString("<VM closed>");
	return PyUnicode_FromFormat("<VM fd %d, %zu memory slots, %zu vCPUs, %zu ranges>",
				    vm->vm->fd, vm->vm->slot_count, vm->vm->vcpu_count,
				    vm->vm->bus[KC_IO].count + vm->vm->bus[KC_MMIO].count);
}

/* ---- what there is ---- */

static PyObject *get_queue(PyObject *self, void *unused)
{
	struct pc_vm *vm = (struct pc_vm *)self;

	if (!vm->queue) {
		vm->queue = pc_queue_new(pc_vm_state(self), vm->vm->queue);
		if (!vm->queue)
			return NULL;
		((struct pc_queue *)vm->queue)->vm = vm;
	}
	return Py_NewRef(vm->queue);
}

static PyObject *get_memory(PyObject *self, void *unused)
{
	struct pc_state *state = pc_vm_state(self);
	kc_auto_free struct kc_slot **list = NULL;
	struct kc_error err;
	struct pc_gil gil;
	PyObject *tuple;
	size_t count = 0;

	if (kc_check_fork(pc_vm_core(self)->fork_generation, &err))
		return pc_vm_fail(self, &err);
	pc_release(&gil, NULL);
	list = kc_memory_slots(pc_vm_core(self), &count, &err);
	pc_acquire(&gil);
	if (!list)
		return pc_vm_fail(self, &err);
	tuple = PyTuple_New((Py_ssize_t)count);
	for (size_t i = 0; i < count; i++) {
		PyObject *memory = tuple ? pc_memory_new(state, (struct pc_vm *)self, list[i])
					 : NULL;

		if (memory)
			PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, memory);
		else
			Py_CLEAR(tuple);
		kc_slot_put(list[i]);
	}
	return tuple;
}

static PyObject *get_vcpus(PyObject *self, void *unused)
{
	struct pc_vm *vm = (struct pc_vm *)self;
	PyObject *tuple = PyTuple_New((Py_ssize_t)vm->vcpu_count);

	if (!tuple)
		return NULL;
	/* By insertion: there are few. */
	for (size_t i = 0; i < vm->vcpu_count; i++) {
		Py_ssize_t at = (Py_ssize_t)i;

		for (; at > 0; at--) {
			PyObject *before = PyTuple_GET_ITEM(tuple, at - 1);

			if (((struct pc_vcpu *)before)->vcpu->id < vm->vcpus[i]->vcpu->id)
				break;
			PyTuple_SET_ITEM(tuple, at, before);
		}
		PyTuple_SET_ITEM(tuple, at, Py_NewRef((PyObject *)vm->vcpus[i]));
	}
	return tuple;
}

/* The ranges of both buses, each with a reference; NULL: no memory. */
static struct kc_range **snapshot_ranges(struct kc_vm *vm, size_t *count)
{
	struct kc_range **list;

	kc_lock_take(&vm->device_lock);
	*count = vm->bus[KC_IO].count + vm->bus[KC_MMIO].count;
	list = calloc(*count + 1, sizeof(struct kc_range *));
	if (list) {
		size_t n = 0;

		for (size_t i = 0; i < vm->bus[KC_IO].count; i++)
			list[n++] = vm->bus[KC_IO].ranges[i];
		for (size_t i = 0; i < vm->bus[KC_MMIO].count; i++)
			list[n++] = vm->bus[KC_MMIO].ranges[i];
		for (size_t i = 0; i < n; i++)
			list[i]->refs++;
	}
	kc_lock_release(&vm->device_lock);
	return list;
}

static PyObject *get_ranges(PyObject *self, void *unused)
{
	struct pc_state *state = pc_vm_state(self);
	kc_auto_free struct kc_range **list = NULL;
	struct kc_error err;
	struct pc_gil gil;
	PyObject *tuple;
	size_t count = 0;

	if (kc_check_fork(pc_vm_core(self)->fork_generation, &err))
		return pc_vm_fail(self, &err);
	pc_release(&gil, NULL);
	list = snapshot_ranges(pc_vm_core(self), &count);
	pc_acquire(&gil);
	if (!list)
		return PyErr_NoMemory();
	tuple = PyTuple_New((Py_ssize_t)count);
	for (size_t i = 0; i < count; i++) {
		PyObject *range = tuple ? pc_range_new(state, (struct pc_vm *)self, list[i]) : NULL;

		if (range)
			PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, range);
		else
			Py_CLEAR(tuple);
	}
	pc_release(&gil, NULL);
	for (size_t i = 0; i < count; i++)
		kc_range_put(list[i], pc_vm_core(self));
	pc_acquire(&gil);
	return tuple;
}

static PyObject *get_tick_frequency(PyObject *self, void *unused)
{
	return PyLong_FromUnsignedLongLong(pc_vm_core(self)->tick_frequency);
}

static PyObject *get_stats(PyObject *self, void *unused)
{
	return pc_stats_new(pc_vm_state(self), (struct pc_vm *)self, NULL);
}

static PyObject *get_closed(PyObject *self, void *unused)
{
	return PyBool_FromLong(atomic_load(&pc_vm_core(self)->closed));
}

/* ---- settings ---- */

static PyObject *get_unassigned(PyObject *self, void *unused)
{
	return PyUnicode_FromString(atomic_load(&pc_vm_core(self)->unassigned_ones) ? "ones"
										    : "error");
}

static int set_unassigned(PyObject *self, PyObject *value, void *unused)
{
	bool text = value && PyUnicode_Check(value);
	bool ones = text && !PyUnicode_CompareWithASCIIString(value, "ones");

	if (!ones && !(text && !PyUnicode_CompareWithASCIIString(value, "error"))) {
		PyErr_Format(PyExc_ValueError, "unassigned must be 'error' or 'ones', not %R",
			     value ? value : Py_None);
		return -1;
	}
	atomic_store(&pc_vm_core(self)->unassigned_ones, ones);
	return 0;
}

static int set_hook(PyObject **hook, atomic_bool *has, PyObject *value, const char *name)
{
	PyObject *old = *hook;

	if (value && value != Py_None && !PyCallable_Check(value)) {
		PyErr_Format(PyExc_TypeError, "%s must be a callable or None, not %.100s", name,
			     Py_TYPE(value)->tp_name);
		return -1;
	}
	*hook = value && value != Py_None ? Py_NewRef(value) : NULL;
	atomic_store(has, *hook != NULL);
	Py_XDECREF(old);
	return 0;
}

static PyObject *get_memory_mode_check(PyObject *self, void *unused)
{
	PyObject *hook = ((struct pc_vm *)self)->memory_mode_check;

	return Py_NewRef(hook ? hook : Py_None);
}

static int set_memory_mode_check(PyObject *self, PyObject *value, void *unused)
{
	return set_hook(&((struct pc_vm *)self)->memory_mode_check,
			&pc_vm_core(self)->hooks.has_memory_mode, value, "memory_mode_check");
}

static PyObject *get_address_hook(PyObject *self, void *unused)
{
	PyObject *hook = ((struct pc_vm *)self)->address_hook;

	return Py_NewRef(hook ? hook : Py_None);
}

static int set_address_hook(PyObject *self, PyObject *value, void *unused)
{
	return set_hook(&((struct pc_vm *)self)->address_hook,
			&pc_vm_core(self)->hooks.has_redirect, value, "address_hook");
}

/* ---- memory ---- */

static PyObject *read_(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	uint64_t address, size;
	struct kc_error err;
	struct pc_gil gil;
	PyObject *bytes;
	int failed;

	if (nargs != 2) {
		PyErr_Format(PyExc_TypeError,
			     "read() takes an address and a size, not %zd arguments", nargs);
		return NULL;
	}
	if (pc_u64(args[0], "address", &address) || pc_uint(args[1], "size", PY_SSIZE_T_MAX, &size))
		return NULL;
	if (kc_vm_check(pc_vm_core(self), &err))
		return pc_vm_fail(self, &err);
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
	if (!bytes)
		return NULL;
	pc_release(&gil, NULL);
	failed = kc_memory_read(pc_vm_core(self), address, PyBytes_AS_STRING(bytes), size, &err);
	pc_acquire(&gil);
	if (failed) {
		Py_DECREF(bytes);
		return pc_vm_fail(self, &err);
	}
	return bytes;
}

static PyObject *write_(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	struct kc_error err;
	struct pc_gil gil;
	uint64_t address;
	Py_buffer view;
	int failed;

	if (nargs != 2) {
		PyErr_Format(PyExc_TypeError,
			     "write() takes an address and data, not %zd arguments", nargs);
		return NULL;
	}
	if (kc_vm_check(pc_vm_core(self), &err))
		return pc_vm_fail(self, &err);
	if (pc_u64(args[0], "address", &address) ||
	    PyObject_GetBuffer(args[1], &view, PyBUF_SIMPLE))
		return NULL;
	pc_release(&gil, NULL);
	failed = kc_memory_write(pc_vm_core(self), address, view.buf, (size_t)view.len, &err);
	pc_acquire(&gil);
	PyBuffer_Release(&view);
	return pc_vm_done(self, failed, &err);
}

/* ---- vCPUs, capabilities ---- */

static PyObject *create_vcpu(PyObject *self, PyObject *args, PyObject *kwargs)
{
	return pc_vcpu_new(pc_vm_state(self), (struct pc_vm *)self, args, kwargs);
}

static PyObject *check_extension(PyObject *self, PyObject *arg)
{
	struct kc_error err;
	uint64_t cap;
	int result;

	if (pc_uint(arg, "a capability", INT32_MAX, &cap))
		return NULL;
	result = kc_vm_ioctl(pc_vm_core(self), KVM_CHECK_EXTENSION, "KVM_CHECK_EXTENSION",
			     (void *)(uintptr_t)cap, &err);
	return result < 0 ? pc_vm_fail(self, &err) : PyLong_FromLong(result);
}

static PyObject *enable_cap(PyObject *self, PyObject *args, PyObject *kwargs)
{
	Py_ssize_t count = PyTuple_GET_SIZE(args);
	struct kvm_enable_cap request = { .cap = 0 };
	PyObject *flags_arg = NULL, *empty;
	static char *names[] = { "flags", NULL };
	uint64_t cap, flags = 0;
	struct kc_error err;
	int parsed;

	if (count < 1 || count > 5) {
		PyErr_SetString(PyExc_TypeError,
				"enable_cap() takes a capability and at most four arguments");
		return NULL;
	}
	empty = PyTuple_New(0);
	parsed = empty &&
		 PyArg_ParseTupleAndKeywords(empty, kwargs, "|$O:enable_cap", names, &flags_arg);
	Py_XDECREF(empty);
	if (!parsed || pc_uint(PyTuple_GET_ITEM(args, 0), "a capability", INT32_MAX, &cap) ||
	    (flags_arg && pc_uint(flags_arg, "flags", UINT32_MAX, &flags)))
		return NULL;
	request.cap = (uint32_t)cap;
	request.flags = (uint32_t)flags;
	for (Py_ssize_t i = 1; i < count; i++) {
		uint64_t value;

		if (pc_u64(PyTuple_GET_ITEM(args, i), "a capability's argument", &value))
			return NULL;
		request.args[i - 1] = value;
	}
	return pc_vm_done(self,
			  kc_vm_ioctl(pc_vm_core(self), KVM_ENABLE_CAP, "KVM_ENABLE_CAP", &request,
				      &err) < 0,
			  &err);
}

/* ---- stopping and closing ---- */

static PyObject *schedule_inst_stop(PyObject *self, PyObject *arg)
{
	struct kc_error err;
	uint64_t insts;

	if (pc_u64(arg, "insts", &insts))
		return NULL;
	return pc_vm_done(self, kc_vm_schedule_inst_stop(pc_vm_core(self), insts, &err), &err);
}

static PyObject *stop(PyObject *self, PyObject *unused)
{
	kc_vm_stop(pc_vm_core(self));
	Py_RETURN_NONE;
}

static PyObject *fileno_(PyObject *self, PyObject *unused)
{
	struct kc_error err;

	if (kc_vm_check(pc_vm_core(self), &err))
		return pc_vm_fail(self, &err);
	return PyLong_FromLong(pc_vm_core(self)->fd);
}

static PyObject *close_(PyObject *self, PyObject *unused)
{
	close_vm((struct pc_vm *)self);
	Py_RETURN_NONE;
}

static PyObject *enter(PyObject *self, PyObject *unused)
{
	struct kc_error err;

	if (kc_vm_check(pc_vm_core(self), &err))
		return pc_vm_fail(self, &err);
	return Py_NewRef(self);
}

static PyObject *exit_(PyObject *self, PyObject *args)
{
	return close_(self, NULL);
}

/* ---- the type ---- */

#define KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS
#define FAST(function) (PyCFunction)(void (*)(void)) function, METH_FASTCALL

static PyMethodDef methods[] = {
	{ "add_memory", KEYWORDS(pc_vm_add_memory), DOC_VM_add_memory },
	{ "read", FAST(read_), DOC_VM_read },
	{ "write", FAST(write_), DOC_VM_write },
	{ "map_io", KEYWORDS(pc_vm_map_io), DOC_VM_map_io },
	{ "map_mmio", KEYWORDS(pc_vm_map_mmio), DOC_VM_map_mmio },
	{ "create_vcpu", KEYWORDS(create_vcpu), DOC_VM_create_vcpu },
	{ "check_extension", check_extension, METH_O, DOC_VM_check_extension },
	{ "enable_cap", KEYWORDS(enable_cap), DOC_VM_enable_cap },
	{ "create_irqchip", pc_vm_create_irqchip, METH_NOARGS, DOC_VM_create_irqchip },
	{ "create_pit", KEYWORDS(pc_vm_create_pit), DOC_VM_create_pit },
	{ "irq_line", FAST(pc_vm_irq_line), DOC_VM_irq_line },
	{ "signal_msi", FAST(pc_vm_signal_msi), DOC_VM_signal_msi },
	{ "set_gsi_routing", pc_vm_set_gsi_routing, METH_O, DOC_VM_set_gsi_routing },
	{ "irqfd", KEYWORDS(pc_vm_irqfd), DOC_VM_irqfd },
	{ "remove_irqfd", FAST(pc_vm_remove_irqfd), DOC_VM_remove_irqfd },
	{ "ioeventfd", KEYWORDS(pc_vm_ioeventfd), DOC_VM_ioeventfd },
	{ "remove_ioeventfd", KEYWORDS(pc_vm_remove_ioeventfd), DOC_VM_remove_ioeventfd },
	{ "schedule_inst_stop", schedule_inst_stop, METH_O, DOC_VM_schedule_inst_stop },
	{ "stop", stop, METH_NOARGS, DOC_VM_stop },
	{ "fileno", fileno_, METH_NOARGS, DOC_VM_fileno },
	{ "close", close_, METH_NOARGS, DOC_VM_close },
	{ "__enter__", enter, METH_NOARGS, DOC_VM___enter__ },
	{ "__exit__", exit_, METH_VARARGS, DOC_VM___exit__ },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef properties[] = {
	{ "queue", get_queue, NULL, DOC_VM_queue, NULL },
	{ "memory", get_memory, NULL, DOC_VM_memory, NULL },
	{ "vcpus", get_vcpus, NULL, DOC_VM_vcpus, NULL },
	{ "ranges", get_ranges, NULL, DOC_VM_ranges, NULL },
	{ "tick_frequency", get_tick_frequency, NULL, DOC_VM_tick_frequency, NULL },
	{ "stats", get_stats, NULL, DOC_VM_stats, NULL },
	{ "unassigned", get_unassigned, set_unassigned, DOC_VM_unassigned, NULL },
	{ "memory_mode_check", get_memory_mode_check, set_memory_mode_check,
	  DOC_VM_memory_mode_check, NULL },
	{ "address_hook", get_address_hook, set_address_hook, DOC_VM_address_hook, NULL },
	{ "closed", get_closed, NULL, DOC_VM_closed, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMemberDef members[] = {
	{ "__weaklistoffset__", T_PYSSIZET, offsetof(struct pc_vm, weakrefs), READONLY, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot slots[] = {
	{ Py_tp_doc, (void *)DOC_VM }, { Py_tp_dealloc, dealloc }, { Py_tp_traverse, traverse },
	{ Py_tp_clear, clear },	       { Py_tp_repr, repr },	   { Py_tp_methods, methods },
	{ Py_tp_getset, properties },  { Py_tp_members, members }, { 0, NULL },
};

static PyType_Spec spec = {
	.name = "kvmcpu._kvm.VM",
	.basicsize = sizeof(struct pc_vm),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
		 Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = slots,
};

int pc_vm_init(PyObject *module, struct pc_state *state)
{
	state->VM = pc_add_type(module, &spec, NULL);
	return state->VM ? 0 : -1;
}
