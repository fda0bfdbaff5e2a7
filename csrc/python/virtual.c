// SPDX-License-Identifier: MIT
/* The guest's virtual memory, by its page tables. */
#include <inttypes.h>
#include <string.h>

#include "memory.h"
#include "vcpu_parts.h"

static int unmapped(uint64_t address, const char *why, struct kc_error *err)
{
	kc_fail(err, KC_ERR_UNMAPPED, "no memory at linear address %#" PRIx64 ": %s", address, why);
	err->address = address;
	return -1;
}

static int translate(struct kc_vcpu *vcpu, uint64_t address, uint64_t *physical,
		     struct kc_error *err)
{
	int result = kc_arch_translate(vcpu, address, physical, err);

	if (result > 0)
		return unmapped(address, "the guest's page tables do not map it", err);
	return result;
}

/* The smallest page of any architecture here: what is contiguous for the guest is so at least this far. */
#define GUEST_PAGE 4096

enum direction { LOOK, READ, WRITE };

/* Page by page; LOOK only finds out whether there is memory. */
static int walk(struct kc_vcpu *vcpu, enum direction direction, uint64_t address, uint8_t *data,
		size_t size, struct kc_error *err)
{
	size_t part;
	uint64_t physical;
	uint8_t scratch;
	int failed;

	for (; size; address += part, data += part, size -= part) {
		part = GUEST_PAGE - address % GUEST_PAGE;
		part = part < size ? part : size;
		if (translate(vcpu, address, &physical, err))
			return -1;
		if (direction == READ)
			failed = kc_memory_read(vcpu->vm, physical, data, part, err);
		else if (direction == WRITE)
			failed = kc_memory_write(vcpu->vm, physical, data, part, err);
		else /* slots are whole pages: its first byte tells of all */
			failed = kc_memory_read(vcpu->vm, physical, &scratch, 1, err);
		if (failed && err->kind == KC_ERR_UNMAPPED)
			return unmapped(address + (err->address - physical),
					"it is mapped to a physical address without memory", err);
		if (failed)
			return -1;
	}
	return 0;
}

static bool wraps(uint64_t address, uint64_t size)
{
	if (size <= UINT64_MAX - address + 1 || !address)
		return false;
	PyErr_SetString(PyExc_ValueError, "the range goes beyond the end of the address space");
	return true;
}

PyObject *pc_vcpu_translate(PyObject *self, PyObject *value)
{
	PyObject *result;
	struct kc_error err;
	uint64_t address, physical;

	if (pc_u64(value, "an address", &address) ||
	    pc_vcpu_claim(pc_vcpu_state(self), pc_vcpu_of(self)))
		return NULL;
	result = translate(pc_vcpu_of(self)->vcpu, address, &physical, &err)
			 ? pc_raise(pc_vcpu_state(self), &err, self)
			 : PyLong_FromUnsignedLongLong(physical);
	pc_vcpu_release(pc_vcpu_of(self));
	return result;
}

PyObject *pc_vcpu_read_virtual(PyObject *self, PyObject *args)
{
	PyObject *address_arg, *size_arg, *bytes;
	struct kc_error err;
	uint64_t address, size;

	if (!PyArg_ParseTuple(args, "OO:read_virtual", &address_arg, &size_arg) ||
	    pc_u64(address_arg, "an address", &address) ||
	    pc_uint(size_arg, "a size", PY_SSIZE_T_MAX, &size) || wraps(address, size))
		return NULL;
	if (pc_vcpu_claim(pc_vcpu_state(self), pc_vcpu_of(self)))
		return NULL;
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
	if (bytes && walk(pc_vcpu_of(self)->vcpu, READ, address,
			  (uint8_t *)PyBytes_AS_STRING(bytes), size, &err)) {
		pc_raise(pc_vcpu_state(self), &err, self);
		Py_CLEAR(bytes);
	}
	pc_vcpu_release(pc_vcpu_of(self));
	return bytes;
}

PyObject *pc_vcpu_write_virtual(PyObject *self, PyObject *args)
{
	struct kc_vcpu *vcpu = pc_vcpu_of(self)->vcpu;
	PyObject *address_arg;
	struct kc_error err;
	uint64_t address;
	Py_buffer data;
	int result = -1;

	if (!PyArg_ParseTuple(args, "Oy*:write_virtual", &address_arg, &data))
		return NULL;
	if (!pc_u64(address_arg, "an address", &address) && !wraps(address, (uint64_t)data.len) &&
	    !pc_vcpu_claim(pc_vcpu_state(self), pc_vcpu_of(self))) {
		result = walk(vcpu, LOOK, address, data.buf, (size_t)data.len, &err);
		if (!result)
			result = walk(vcpu, WRITE, address, data.buf, (size_t)data.len, &err);
		if (result)
			pc_raise(pc_vcpu_state(self), &err, self);
		pc_vcpu_release(pc_vcpu_of(self));
	}
	PyBuffer_Release(&data);
	return result ? NULL : Py_NewRef(Py_None);
}
