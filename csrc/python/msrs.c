// SPDX-License-Identifier: MIT
/* A vCPU's model-specific registers, by number or by name. */
#include <string.h>

#include "arch/arch.h"
#include "dump.h"
#include "module.h"

struct pc_msrs {
	PyObject_HEAD
	struct pc_vcpu *vcpu;
};

PyObject *pc_msrs_new(struct pc_state *state, struct pc_vcpu *vcpu)
{
	struct pc_msrs *self = (struct pc_msrs *)state->Msrs->tp_alloc(state->Msrs, 0);

	if (self)
		self->vcpu = (struct pc_vcpu *)Py_NewRef(vcpu);
	return (PyObject *)self;
}

static int msrs_traverse(PyObject *object, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(object));
	Py_VISIT(((struct pc_msrs *)object)->vcpu);
	return 0;
}

static void msrs_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);

	PyObject_GC_UnTrack(object);
	Py_XDECREF(((struct pc_msrs *)object)->vcpu);
	type->tp_free(object);
	Py_DECREF(type);
}

/* ---- names ---- */

/* With or without the manuals' prefix. */
static int index_of(PyObject *name, uint32_t *index)
{
	const char *text = PyUnicode_AsUTF8(name);

	if (!text)
		return -1;
	if (!strncmp(text, "IA32_", 5))
		text += 5;
	else if (!strncmp(text, "MSR_", 4))
		text += 4;
	for (unsigned int i = 0; i < kc_arch_msr_name_count; i++) {
		if (!strcmp(kc_arch_msr_names[i].name, text)) {
			*index = kc_arch_msr_names[i].index;
			return 0;
		}
	}
	PyErr_SetObject(PyExc_KeyError, name);
	return -1;
}

static int key_to_index(PyObject *key, uint32_t *index)
{
	uint64_t number;

	if (PyUnicode_Check(key))
		return index_of(key, index);
	if (pc_uint(key, "an MSR's number", UINT32_MAX, &number))
		return -1;
	*index = (uint32_t)number;
	return 0;
}

/* ---- the mapping ---- */

static PyObject *msrs_subscript(PyObject *object, PyObject *key)
{
	struct pc_vcpu *vcpu = ((struct pc_msrs *)object)->vcpu;
	struct pc_state *state = pc_state_of_type(Py_TYPE(object));
	struct kc_error err;
	PyObject *result;
	uint64_t value;
	uint32_t index;

	if (key_to_index(key, &index) || pc_vcpu_claim(state, vcpu))
		return NULL;
	result = kc_arch_get_msr(vcpu->vcpu, index, &value, &err)
			 ? pc_raise(state, &err, (PyObject *)vcpu)
			 : PyLong_FromUnsignedLongLong(value);
	pc_vcpu_release(vcpu);
	return result;
}

static int msrs_ass_subscript(PyObject *object, PyObject *key, PyObject *value)
{
	struct pc_vcpu *vcpu = ((struct pc_msrs *)object)->vcpu;
	struct pc_state *state = pc_state_of_type(Py_TYPE(object));
	struct kc_error err;
	uint64_t number;
	uint32_t index;
	int result;

	if (!value) {
		PyErr_SetString(PyExc_TypeError, "MSRs cannot be deleted");
		return -1;
	}
	if (key_to_index(key, &index) || pc_u64(value, "an MSR's value", &number) ||
	    pc_vcpu_claim(state, vcpu))
		return -1;
	result = kc_arch_set_msr(vcpu->vcpu, index, number, &err);
	if (result)
		pc_raise(state, &err, (PyObject *)vcpu);
	pc_vcpu_release(vcpu);
	return result;
}

static uint32_t *list(PyObject *object, size_t *count)
{
	struct pc_vcpu *vcpu = ((struct pc_msrs *)object)->vcpu;
	struct pc_state *state = pc_state_of_type(Py_TYPE(object));
	struct kc_error err;
	uint32_t *indices;

	if (pc_vcpu_claim(state, vcpu))
		return NULL;
	indices = kc_arch_msr_list(vcpu->vcpu->vm, count, &err);
	if (!indices)
		pc_raise(state, &err, (PyObject *)vcpu);
	pc_vcpu_release(vcpu);
	return indices;
}

static Py_ssize_t msrs_length(PyObject *self)
{
	size_t count;
	kc_auto_free uint32_t *indices = list(self, &count);

	return indices ? (Py_ssize_t)count : -1;
}

static PyObject *msrs_iter(PyObject *self)
{
	size_t count;
	kc_auto_free uint32_t *indices = list(self, &count);
	PyObject *numbers = indices ? PyList_New((Py_ssize_t)count) : NULL, *iterator = NULL;

	for (size_t i = 0; numbers && i < count; i++) {
		PyObject *number = PyLong_FromUnsignedLong(indices[i]);

		if (!number)
			Py_CLEAR(numbers);
		else
			PyList_SET_ITEM(numbers, (Py_ssize_t)i, number);
	}
	if (numbers)
		iterator = PyObject_GetIter(numbers);
	Py_XDECREF(numbers);
	return iterator;
}

static PyObject *msrs_name(PyObject *self, PyObject *value)
{
	uint64_t index;
	const char *name;

	if (pc_uint(value, "an MSR's number", UINT32_MAX, &index))
		return NULL;
	name = kc_msr_name((uint32_t)index);
	if (!name)
		Py_RETURN_NONE;
	return PyUnicode_FromString(name);
}

static int add(PyObject *dict, uint32_t index, uint64_t value)
{
	PyObject *number = PyLong_FromUnsignedLongLong(value);
	const char *name = kc_msr_name(index);
	char hex[16];
	int failed;

	snprintf(hex, sizeof(hex), "0x%x", index);
	failed = number ? PyDict_SetItemString(dict, name ? name : hex, number) : -1;
	Py_XDECREF(number);
	return failed;
}

static PyObject *msrs_as_dict(PyObject *object, PyObject *ignored)
{
	struct pc_vcpu *vcpu = ((struct pc_msrs *)object)->vcpu;
	struct pc_state *state = pc_state_of_type(Py_TYPE(object));
	size_t count;
	kc_auto_free uint32_t *indices = list(object, &count);
	PyObject *dict = indices ? PyDict_New() : NULL;

	if (!dict)
		return NULL;
	if (pc_vcpu_claim(state, vcpu)) {
		Py_DECREF(dict);
		return NULL;
	}
	for (size_t i = 0; dict && i < count; i++) {
		struct kc_error unreadable;
		uint64_t value;

		/* Some are listed for processors or guests that have them, and this one has not. */
		if (!kc_arch_get_msr(vcpu->vcpu, indices[i], &value, &unreadable) &&
		    add(dict, indices[i], value))
			Py_CLEAR(dict);
	}
	pc_vcpu_release(vcpu);
	return dict;
}

static PyObject *msrs_repr(PyObject *object)
{
	struct pc_vcpu *vcpu = ((struct pc_msrs *)object)->vcpu;
	struct pc_state *state = pc_state_of_type(Py_TYPE(object));
	kc_auto_free char *text = NULL;
	struct kc_error err;
	size_t size;
	FILE *out;
	int failed;

	if (pc_vcpu_claim(state, vcpu))
		return NULL;
	out = open_memstream(&text, &size);
	if (!out) {
		pc_vcpu_release(vcpu);
		return PyErr_NoMemory();
	}
	fputs("Msrs(\n", out);
	failed = kc_dump_msrs(out, vcpu->vcpu, "", &err);
	fputs(")", out);
	if (fclose(out) && !failed)
		failed = kc_fail(&err, KC_ERR_MEMORY, "out of memory");
	if (failed)
		pc_raise(state, &err, (PyObject *)vcpu);
	pc_vcpu_release(vcpu);
	return failed ? NULL : PyUnicode_FromStringAndSize(text, (Py_ssize_t)size);
}

static PyMethodDef msrs_methods[] = {
	{ "name", msrs_name, METH_O, DOC_Msrs_name },
	{ "as_dict", msrs_as_dict, METH_NOARGS, DOC_Msrs_as_dict },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot msrs_slots[] = {
	{ Py_tp_doc, (void *)DOC_Msrs },
	{ Py_tp_dealloc, msrs_dealloc },
	{ Py_tp_traverse, msrs_traverse },
	{ Py_tp_repr, msrs_repr },
	{ Py_tp_iter, msrs_iter },
	{ Py_mp_subscript, msrs_subscript },
	{ Py_mp_ass_subscript, msrs_ass_subscript },
	{ Py_mp_length, msrs_length },
	{ Py_tp_methods, msrs_methods },
	{ 0, NULL },
};

static PyType_Spec msrs_spec = {
	.name = "kvmcpu._kvm.Msrs",
	.basicsize = sizeof(struct pc_msrs),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = msrs_slots,
};

int pc_msrs_init(PyObject *module, struct pc_state *state)
{
	state->Msrs = pc_add_type(module, &msrs_spec, NULL);
	return state->Msrs ? 0 : -1;
}
