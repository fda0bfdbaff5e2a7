// SPDX-License-Identifier: MIT
/* What a vCPU holds, as attributes: register files, MSRs, raw areas, CPUID, single registers by id. */
#include <string.h>

#include "dump.h"
#include "onereg.h"
#include "vcpu_parts.h"
#if defined(__x86_64__)
#include "arch/x86_64.h"
#endif

PyObject *pc_vcpu_get_file(PyObject *self, void *register_file)
{
	const struct kc_register_file *file = register_file;

	return pc_register_file_new(pc_vcpu_state(self), pc_vcpu_of(self),
				    (unsigned int)(file - kc_arch_register_files));
}

int pc_vcpu_set_file(PyObject *self, PyObject *value, void *register_file)
{
	const struct kc_register_file *file = register_file;

	return pc_register_file_assign(pc_vcpu_state(self), pc_vcpu_of(self),
				       (unsigned int)(file - kc_arch_register_files), value);
}

PyObject *pc_vcpu_get_msrs(PyObject *self, void *ignored)
{
	return pc_msrs_new(pc_vcpu_state(self), pc_vcpu_of(self));
}

static PyObject *fail(PyObject *self, const struct kc_error *err)
{
	return pc_raise(pc_vcpu_state(self), err, self);
}

static int claim(PyObject *self)
{
	return pc_vcpu_claim(pc_vcpu_state(self), pc_vcpu_of(self));
}

static void release(PyObject *self)
{
	pc_vcpu_release(pc_vcpu_of(self));
}

/* ---- registers by id (V13) ---- */

PyObject *pc_vcpu_get_one_reg(PyObject *self, PyObject *id)
{
	uint8_t value[KC_ONE_REG_MAX] = { 0 };
	PyObject *result;
	struct kc_error err;
	uint64_t number, small;
	size_t size;

	if (pc_u64(id, "a register's id", &number) || claim(self))
		return NULL;
	size = kc_one_reg_size(number);
	if (kc_one_reg_get(pc_vcpu_of(self)->vcpu, number, value, &err)) {
		result = fail(self, &err);
	} else if (size <= sizeof(small)) {
		memcpy(&small, value, sizeof(small));
		result = PyLong_FromUnsignedLongLong(small);
	} else {
		result = PyBytes_FromStringAndSize((char *)value, (Py_ssize_t)size);
	}
	release(self);
	return result;
}

/* The bytes of an int or of a buffer, exactly size of them. */
static int one_reg_value(PyObject *value, size_t size, uint8_t *bytes)
{
	PyObject *made;

	if (PyIndex_Check(value)) {
		PyObject *number = PyNumber_Index(value);

		made = number ? PyObject_CallMethod(number, "to_bytes", "ns", (Py_ssize_t)size,
						    "little")
			      : NULL;
		if (!made && number && PyErr_ExceptionMatches(PyExc_OverflowError))
			PyErr_Format(PyExc_ValueError, "%R does not fit in the register's %zu bits",
				     number, 8 * size);
		Py_XDECREF(number);
	} else {
		made = PyBytes_FromObject(value);
		if (made && (size_t)PyBytes_GET_SIZE(made) != size) {
			PyErr_Format(PyExc_ValueError, "the register has %zu bytes, not %zd", size,
				     PyBytes_GET_SIZE(made));
			Py_CLEAR(made);
		}
	}
	if (!made)
		return -1;
	memcpy(bytes, PyBytes_AS_STRING(made), size);
	Py_DECREF(made);
	return 0;
}

PyObject *pc_vcpu_set_one_reg(PyObject *self, PyObject *args)
{
	uint8_t bytes[KC_ONE_REG_MAX] = { 0 };
	PyObject *id, *value;
	struct kc_error err;
	uint64_t number;
	bool failed;

	if (!PyArg_ParseTuple(args, "OO:set_one_reg", &id, &value) ||
	    pc_u64(id, "a register's id", &number))
		return NULL;
	if (kc_one_reg_size(number) && one_reg_value(value, kc_one_reg_size(number), bytes))
		return NULL;
	if (claim(self))
		return NULL;
	failed = kc_one_reg_set(pc_vcpu_of(self)->vcpu, number, bytes, &err);
	if (failed)
		fail(self, &err);
	release(self);
	return failed ? NULL : Py_NewRef(Py_None);
}

PyObject *pc_vcpu_reg_list(PyObject *self, PyObject *ignored)
{
	kc_auto_free uint64_t *ids = NULL;
	struct kc_error err;
	PyObject *list;
	size_t count;

	if (claim(self))
		return NULL;
	ids = kc_one_reg_list(pc_vcpu_of(self)->vcpu, &count, &err);
	if (!ids)
		fail(self, &err);
	release(self);
	list = ids ? PyList_New((Py_ssize_t)count) : NULL;
	for (size_t i = 0; list && i < count; i++) {
		PyObject *id = PyLong_FromUnsignedLongLong(ids[i]);

		if (!id)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, (Py_ssize_t)i, id);
	}
	return list;
}

PyObject *pc_vcpu_format_one_reg(PyObject *self, PyObject *id)
{
	uint8_t value[KC_ONE_REG_MAX] = { 0 };
	char text[KC_ONE_REG_TEXT];
	struct kc_error err;
	uint64_t number;
	bool failed;

	if (pc_u64(id, "a register's id", &number) || claim(self))
		return NULL;
	/* What has no known size cannot be read, and has its own text. */
	failed = kc_one_reg_size(number) &&
		 kc_one_reg_get(pc_vcpu_of(self)->vcpu, number, value, &err);
	if (failed)
		fail(self, &err);
	release(self);
	if (failed)
		return NULL;
	kc_one_reg_format(number, value, text, sizeof(text));
	return PyUnicode_FromString(text);
}

PyObject *pc_vcpu_dump(PyObject *self, PyObject *ignored)
{
	kc_auto_free char *text = NULL;
	struct kc_error err;

	if (claim(self))
		return NULL;
	text = kc_dump(pc_vcpu_of(self)->vcpu, false, &err);
	if (!text)
		fail(self, &err);
	release(self);
	return text ? PyUnicode_DecodeUTF8(text, (Py_ssize_t)strlen(text), "replace") : NULL;
}

/* ---- CPUID ---- */

static int cpuid_entry(PyObject *value, struct kc_cpuid_entry *entry)
{
	PyObject *words = PySequence_Fast(value, "a CPUID entry is a sequence of seven ints");
	uint64_t word;
	int result = 0;

	if (!words)
		return -1;
	if (PySequence_Fast_GET_SIZE(words) != 7) {
		PyErr_SetString(PyExc_ValueError,
				"a CPUID entry is (function, index, flags, eax, ebx, ecx, edx)");
		result = -1;
	}
	for (Py_ssize_t i = 0; !result && i < 7; i++) {
		result = pc_uint(PySequence_Fast_GET_ITEM(words, i), "a word of a CPUID entry",
				 UINT32_MAX, &word);
		entry->word[i] = result ? 0 : (uint32_t)word;
	}
	Py_DECREF(words);
	return result;
}

struct kc_cpuid_entry *pc_cpuid_from_python(PyObject *value, size_t *count)
{
	PyObject *list = PySequence_Tuple(value);
	struct kc_cpuid_entry *entries;

	if (!list)
		return NULL;
	*count = (size_t)PyTuple_GET_SIZE(list);
	entries = calloc(*count + 1, sizeof(*entries));
	if (!entries)
		PyErr_NoMemory();
	for (size_t i = 0; entries && i < *count; i++) {
		if (cpuid_entry(PyTuple_GET_ITEM(list, (Py_ssize_t)i), &entries[i])) {
			free(entries);
			entries = NULL;
		}
	}
	Py_DECREF(list);
	return entries;
}

PyObject *pc_cpuid_as_tuples(const struct kc_cpuid_entry *entries, size_t count)
{
	PyObject *list = PyList_New((Py_ssize_t)count);

	for (size_t i = 0; list && i < count; i++) {
		const uint32_t *w = entries[i].word;
		PyObject *entry =
			Py_BuildValue("(IIIIIII)", w[0], w[1], w[2], w[3], w[4], w[5], w[6]);

		if (!entry)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, (Py_ssize_t)i, entry);
	}
	return list;
}

#if defined(__x86_64__)

PyObject *pc_vcpu_get_cpuid(PyObject *self, void *ignored)
{
	kc_auto_free struct kc_cpuid_entry *entries = NULL;
	struct kc_error err;
	size_t count;

	if (claim(self))
		return NULL;
	entries = kc_arch_get_cpuid(pc_vcpu_of(self)->vcpu, &count, &err);
	if (!entries)
		fail(self, &err);
	release(self);
	return entries ? pc_cpuid_as_tuples(entries, count) : NULL;
}

static int cannot_delete(const char *name)
{
	PyErr_Format(PyExc_AttributeError, "%s cannot be deleted", name);
	return -1;
}

int pc_vcpu_set_cpuid(PyObject *self, PyObject *value, void *ignored)
{
	kc_auto_free struct kc_cpuid_entry *entries = NULL;
	struct kc_error err;
	size_t count;
	int result;

	if (!value)
		return cannot_delete("cpuid");
	entries = pc_cpuid_from_python(value, &count);
	if (!entries || claim(self))
		return -1;
	result = kc_arch_set_cpuid(pc_vcpu_of(self)->vcpu, entries, count, &err);
	if (result)
		fail(self, &err);
	release(self);
	return result;
}

/* ---- register files that are bytes or a number ---- */

static PyObject *get_raw(PyObject *self, unsigned int file)
{
	struct kc_vcpu *vcpu = pc_vcpu_of(self)->vcpu;
	PyObject *bytes;
	struct kc_error err;
	const void *data;

	if (claim(self))
		return NULL;
	data = kc_context_read(vcpu, file, &err);
	bytes = data ? PyBytes_FromStringAndSize(data, (Py_ssize_t)vcpu->context.size[file])
		     : fail(self, &err);
	release(self);
	return bytes;
}

static int set_raw(PyObject *self, PyObject *value, unsigned int file)
{
	struct kc_vcpu *vcpu = pc_vcpu_of(self)->vcpu;
	const char *name = kc_arch_files[file].name;
	struct kc_error err;
	Py_buffer buffer;
	int result = -1;
	void *data;

	if (!value)
		return cannot_delete(name);
	if (PyObject_GetBuffer(value, &buffer, PyBUF_SIMPLE))
		return -1;
	if (claim(self)) {
		PyBuffer_Release(&buffer);
		return -1;
	}
	/* Reading it says first whether the vCPU has it. */
	if (!kc_context_read(vcpu, file, &err)) {
		fail(self, &err);
	} else if ((size_t)buffer.len != vcpu->context.size[file]) {
		PyErr_Format(PyExc_ValueError, "%s has %zu bytes, not %zd", name,
			     vcpu->context.size[file], buffer.len);
	} else {
		data = kc_context_write(vcpu, file, &err);
		if (data)
			memcpy(data, buffer.buf, (size_t)buffer.len);
		else
			fail(self, &err);
		result = data ? 0 : -1;
	}
	release(self);
	PyBuffer_Release(&buffer);
	return result;
}

PyObject *pc_vcpu_get_xsave(PyObject *self, void *ignored)
{
	return get_raw(self, KC_X86_XSAVE);
}

int pc_vcpu_set_xsave(PyObject *self, PyObject *value, void *ignored)
{
	return set_raw(self, value, KC_X86_XSAVE);
}

PyObject *pc_vcpu_get_lapic(PyObject *self, void *ignored)
{
	return get_raw(self, KC_X86_LAPIC);
}

int pc_vcpu_set_lapic(PyObject *self, PyObject *value, void *ignored)
{
	return set_raw(self, value, KC_X86_LAPIC);
}

PyObject *pc_vcpu_get_mp_state(PyObject *self, void *ignored)
{
	PyObject *bytes = get_raw(self, KC_X86_MP_STATE);
	uint32_t number;

	if (!bytes)
		return NULL;
	memcpy(&number, PyBytes_AS_STRING(bytes), sizeof(number));
	Py_DECREF(bytes);
	return PyLong_FromUnsignedLong(number);
}

int pc_vcpu_set_mp_state(PyObject *self, PyObject *value, void *ignored)
{
	uint64_t number;
	uint32_t word;
	PyObject *bytes;
	int result;

	if (!value)
		return cannot_delete("mp_state");
	if (pc_uint(value, "mp_state", UINT32_MAX, &number))
		return -1;
	word = (uint32_t)number;
	bytes = PyBytes_FromStringAndSize((char *)&word, sizeof(word));
	result = bytes ? set_raw(self, bytes, KC_X86_MP_STATE) : -1;
	Py_XDECREF(bytes);
	return result;
}

PyObject *pc_vcpu_get_tsc_khz(PyObject *self, void *ignored)
{
	PyObject *result;
	struct kc_error err;
	uint32_t khz;

	if (claim(self))
		return NULL;
	result = kc_x86_get_tsc_khz(pc_vcpu_of(self)->vcpu, &khz, &err)
			 ? fail(self, &err)
			 : PyLong_FromUnsignedLong(khz);
	release(self);
	return result;
}

int pc_vcpu_set_tsc_khz(PyObject *self, PyObject *value, void *ignored)
{
	struct kc_error err;
	uint64_t khz;
	int result;

	if (!value)
		return cannot_delete("tsc_khz");
	if (pc_uint(value, "tsc_khz", UINT32_MAX, &khz) || claim(self))
		return -1;
	result = kc_x86_set_tsc_khz(pc_vcpu_of(self)->vcpu, (uint32_t)khz, &err);
	if (result)
		fail(self, &err);
	release(self);
	return result;
}

#endif
