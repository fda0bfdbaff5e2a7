// SPDX-License-Identifier: MIT
#include "module.h"

#include <string.h>

/* Copies from this size on let other threads run. */
#define LONG_COPY 65536

static struct pc_state *state_of(PyObject *self)
{
	return pc_state_of_type(Py_TYPE(self));
}

static struct kc_slot *slot_of(PyObject *self)
{
	return ((struct pc_memory *)self)->slot;
}

PyObject *pc_memory_new(struct pc_state *state, struct pc_vm *vm, struct kc_slot *slot)
{
	struct pc_memory *self = (struct pc_memory *)state->Memory->tp_alloc(state->Memory, 0);

	if (self) {
		self->vm = (struct pc_vm *)Py_NewRef((PyObject *)vm);
		self->slot = kc_slot_get(slot);
	}
	return (PyObject *)self;
}

/* ---- VM.add_memory() ---- */

static void release_buffer(void *owner)
{
	struct pc_callback callback = { .keep_error = true };

	pc_enter_python(&callback);
	PyBuffer_Release(owner);
	pc_leave_python(&callback);
	free(owner);
}

static struct kc_mapping *map_buffer(struct pc_state *state, PyObject *source)
{
	Py_buffer *view = calloc(1, sizeof(*view));
	struct kc_mapping *mapping;
	struct kc_error err;

	if (!view) {
		PyErr_NoMemory();
		return NULL;
	}
	if (PyObject_GetBuffer(source, view, PyBUF_WRITABLE)) {
		free(view);
		return NULL;
	}
	mapping = kc_mapping_buffer(view->buf, (size_t)view->len, release_buffer, view, &err);
	if (!mapping) {
		release_buffer(view);
		pc_raise(state, &err, NULL);
	}
	return mapping;
}

static struct kc_mapping *map_new(struct pc_state *state, PyObject *source, PyObject *file,
				  uint64_t offset)
{
	struct kc_mapping *mapping;
	struct kc_error err;
	struct pc_gil gil;
	uint64_t size;
	int fd = -1;

	if (pc_size(source, &size))
		return NULL;
	if (size > SIZE_MAX) {
		PyErr_SetString(PyExc_ValueError, "the size is more than a process can map");
		return NULL;
	}
	if (file != Py_None) {
		fd = PyObject_AsFileDescriptor(file);
		if (fd < 0)
			return NULL;
	}
	pc_release(&gil, NULL);
	mapping = file == Py_None ? kc_mapping_anonymous((size_t)size, &err)
				  : kc_mapping_file(fd, offset, (size_t)size, &err);
	pc_acquire(&gil);
	if (!mapping)
		pc_raise(state, &err, NULL);
	return mapping;
}

static struct kc_mapping *map_source(struct pc_state *state, PyObject *source, PyObject *file,
				     uint64_t offset)
{
	bool is_size = PyUnicode_Check(source) || (PyIndex_Check(source) && !PyBool_Check(source));

	/* Arrays of one item are numbers to Python too. */
	if (is_size && !PyObject_CheckBuffer(source))
		return map_new(state, source, file, offset);
	if (file != Py_None || offset) {
		PyErr_SetString(PyExc_TypeError,
				"file and offset go with a size, not with a source of bytes");
		return NULL;
	}
	if (Py_IS_TYPE(source, state->Memory))
		return kc_mapping_get(slot_of(source)->mapping);
	if (PyObject_CheckBuffer(source))
		return map_buffer(state, source);
	PyErr_Format(
		PyExc_TypeError,
		"source must be a size, a Memory or an object with a writable buffer, not %.100s",
		Py_TYPE(source)->tp_name);
	return NULL;
}

PyObject *pc_vm_add_memory(PyObject *vm, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "address",  "source",	  "file", "offset",
				 "readonly", "log_dirty", NULL };
	struct pc_vm *self = (struct pc_vm *)vm;
	struct pc_state *state = state_of(vm);
	PyObject *address_arg, *source, *file = Py_None, *offset_arg = NULL, *memory = NULL;
	int readonly = 0, log_dirty = 0;
	uint64_t address, offset = 0;
	struct kc_mapping *mapping;
	struct kc_slot *slot;
	struct kc_error err;
	struct pc_gil gil;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|$OOpp:add_memory", names, &address_arg,
					 &source, &file, &offset_arg, &readonly, &log_dirty) ||
	    pc_u64(address_arg, "address", &address) ||
	    (offset_arg && pc_u64(offset_arg, "offset", &offset)))
		return NULL;
	mapping = map_source(state, source, file, offset);
	if (!mapping)
		return NULL;
	pc_release(&gil, NULL);
	slot = kc_slot_add(self->vm, address, mapping, readonly, log_dirty, &err);
	kc_mapping_put(mapping);
	pc_acquire(&gil);
	if (!slot)
		return pc_raise(state, &err, NULL);
	memory = pc_memory_new(state, self, slot);
	if (!memory) { /* nobody could take it away again */
		pc_release(&gil, NULL);
		kc_slot_remove(slot, &err);
		pc_acquire(&gil);
	}
	kc_slot_put(slot);
	return memory;
}

/* ---- Memory ---- */

static void dealloc(PyObject *self)
{
	struct pc_memory *memory = (struct pc_memory *)self;
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	kc_slot_put(memory->slot);
	Py_XDECREF(memory->vm);
	type->tp_free(self);
	Py_DECREF(type);
}

static int traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT((PyObject *)((struct pc_memory *)self)->vm);
	return 0;
}

static PyObject *compare(PyObject *a, PyObject *b, int op)
{
	if ((op != Py_EQ && op != Py_NE) || Py_TYPE(a) != Py_TYPE(b))
		Py_RETURN_NOTIMPLEMENTED;
	return PyBool_FromLong((slot_of(a) == slot_of(b)) == (op == Py_EQ));
}

static Py_hash_t hash(PyObject *self)
{
	return _Py_HashPointer(slot_of(self));
}

static const char *backing_name(const struct kc_slot *slot)
{
	switch (slot->mapping->backing) {
	case KC_ANONYMOUS:
		return "anonymous";
	case KC_FILE:
		return "file";
	default:
		return "buffer";
	}
}

static PyObject *repr(PyObject *self)
{
	static const char *const units[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
	struct kc_slot *slot = slot_of(self);
	size_t size = slot->mapping->size;
	unsigned int unit = 0;
	char text[160];

	for (; size % 1024 == 0 && unit < 4; unit++)
		size /= 1024;
	snprintf(text, sizeof(text), "<Memory 0x%llx-0x%llx %zu %s %s%s%s%s>",
		 (unsigned long long)slot->address,
		 (unsigned long long)(slot->address + (slot->mapping->size - 1)), size, units[unit],
		 backing_name(slot), slot->readonly ? " readonly" : "",
		 slot->log_dirty ? " log_dirty" : "", kc_slot_removed(slot) ? " removed" : "");
	return PyUnicode_FromString(text);
}

/* ---- the bytes ---- */

static int get_buffer(PyObject *self, Py_buffer *view, int flags)
{
	struct kc_mapping *mapping = slot_of(self)->mapping;

	/* The view holds self, which holds the slot, which holds the mapping. */
	return PyBuffer_FillInfo(view, self, mapping->host, (Py_ssize_t)mapping->size, 0, flags);
}

static Py_ssize_t length(PyObject *self)
{
	return (Py_ssize_t)slot_of(self)->mapping->size;
}

static PyObject *item(PyObject *self, Py_ssize_t i)
{
	if (i < 0 || i >= length(self)) {
		PyErr_SetString(PyExc_IndexError, "offset outside the memory");
		return NULL;
	}
	return PyLong_FromLong(slot_of(self)->mapping->host[i]);
}

static PyObject *get_item(PyObject *self, PyObject *key)
{
	PyObject *view, *result;

	if (PyIndex_Check(key)) {
		Py_ssize_t i = PyNumber_AsSsize_t(key, PyExc_IndexError);

		if (i == -1 && PyErr_Occurred())
			return NULL;
		return item(self, i < 0 ? i + length(self) : i);
	}
	view = PyMemoryView_FromObject(self);
	if (!view)
		return NULL;
	result = PyObject_GetItem(view, key);
	Py_DECREF(view);
	return result;
}

/* Bytes in a row, from any object with a buffer, whatever the type of its items. */
static int set_slice(PyObject *self, Py_ssize_t start, Py_ssize_t size, PyObject *value)
{
	uint8_t *to = slot_of(self)->mapping->host + start;
	struct pc_gil gil;
	Py_buffer view;

	if (PyObject_GetBuffer(value, &view, PyBUF_SIMPLE))
		return -1;
	if (view.len != size) {
		PyErr_Format(PyExc_ValueError,
			     "%zd bytes do not fit a slice of %zd: memory has a fixed size",
			     view.len, size);
		PyBuffer_Release(&view);
		return -1;
	}
	/* It may be a view of the same memory. */
	if (size < LONG_COPY) {
		memmove(to, view.buf, (size_t)size);
	} else {
		pc_release(&gil, NULL);
		memmove(to, view.buf, (size_t)size);
		pc_acquire(&gil);
	}
	PyBuffer_Release(&view);
	return 0;
}

static int set_item(PyObject *self, PyObject *key, PyObject *value)
{
	PyObject *view;
	int failed;

	if (!value) {
		PyErr_SetString(PyExc_TypeError, "memory cannot be deleted; see remove()");
		return -1;
	}
	if (PySlice_Check(key)) {
		Py_ssize_t start, stop, step, size;

		if (PySlice_Unpack(key, &start, &stop, &step))
			return -1;
		size = PySlice_AdjustIndices(length(self), &start, &stop, step);
		if (step == 1)
			return set_slice(self, start, size, value);
	}
	view = PyMemoryView_FromObject(self);
	if (!view)
		return -1;
	failed = PyObject_SetItem(view, key, value);
	Py_DECREF(view);
	return failed;
}

/* ---- properties and methods ---- */

static PyObject *get_address(PyObject *self, void *unused)
{
	return PyLong_FromUnsignedLongLong(slot_of(self)->address);
}

static PyObject *get_size(PyObject *self, void *unused)
{
	return PyLong_FromSize_t(slot_of(self)->mapping->size);
}

static PyObject *get_slot(PyObject *self, void *unused)
{
	return PyLong_FromUnsignedLong(slot_of(self)->id);
}

static PyObject *get_backing(PyObject *self, void *unused)
{
	return PyUnicode_FromString(backing_name(slot_of(self)));
}

static PyObject *get_readonly(PyObject *self, void *unused)
{
	return PyBool_FromLong(slot_of(self)->readonly);
}

static PyObject *get_log_dirty(PyObject *self, void *unused)
{
	return PyBool_FromLong(slot_of(self)->log_dirty);
}

static int set_log_dirty(PyObject *self, PyObject *value, void *unused)
{
	struct kc_error err;
	struct pc_gil gil;
	int on, failed;

	if (!value) {
		PyErr_SetString(PyExc_AttributeError, "log_dirty cannot be deleted");
		return -1;
	}
	on = PyObject_IsTrue(value);
	if (on < 0)
		return -1;
	pc_release(&gil, NULL);
	failed = kc_slot_set_log_dirty(slot_of(self), on, &err);
	pc_acquire(&gil);
	if (failed)
		pc_raise(state_of(self), &err, NULL);
	return failed;
}

static PyObject *get_closed(PyObject *self, void *unused)
{
	return PyBool_FromLong(kc_slot_removed(slot_of(self)));
}

static PyObject *dirty_pages(PyObject *self, PyObject *unused)
{
	kc_auto_free uint64_t *bitmap = NULL;
	struct kc_error err;
	struct pc_gil gil;
	PyObject *list;
	size_t pages;

	pc_release(&gil, NULL);
	bitmap = kc_slot_dirty_log(slot_of(self), &pages, &err);
	pc_acquire(&gil);
	if (!bitmap)
		return pc_raise(state_of(self), &err, NULL);
	list = PyList_New(0);
	for (size_t word = 0; list && word < (pages + 63) / 64; word++) {
		for (uint64_t bits = bitmap[word]; list && bits; bits &= bits - 1) {
			PyObject *page =
				PyLong_FromSize_t(word * 64 + (size_t)__builtin_ctzll(bits));

			if (!page || PyList_Append(list, page))
				Py_CLEAR(list);
			Py_XDECREF(page);
		}
	}
	return list;
}

static PyObject *remove_(PyObject *self, PyObject *unused)
{
	struct kc_error err;
	struct pc_gil gil;
	int failed;

	pc_release(&gil, NULL);
	failed = kc_slot_remove(slot_of(self), &err);
	pc_acquire(&gil);
	if (failed)
		return pc_raise(state_of(self), &err, NULL);
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{ "dirty_pages", dirty_pages, METH_NOARGS, DOC_Memory_dirty_pages },
	{ "remove", remove_, METH_NOARGS, DOC_Memory_remove },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef properties[] = {
	{ "address", get_address, NULL, DOC_Memory_address, NULL },
	{ "size", get_size, NULL, DOC_Memory_size, NULL },
	{ "slot", get_slot, NULL, DOC_Memory_slot, NULL },
	{ "backing", get_backing, NULL, DOC_Memory_backing, NULL },
	{ "readonly", get_readonly, NULL, DOC_Memory_readonly, NULL },
	{ "log_dirty", get_log_dirty, set_log_dirty, DOC_Memory_log_dirty, NULL },
	{ "closed", get_closed, NULL, DOC_Memory_closed, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot slots[] = {
	{ Py_tp_doc, (void *)DOC_Memory },
	{ Py_tp_dealloc, dealloc },
	{ Py_tp_traverse, traverse },
	{ Py_tp_richcompare, compare },
	{ Py_tp_hash, hash },
	{ Py_tp_repr, repr },
	{ Py_tp_methods, methods },
	{ Py_tp_getset, properties },
	{ Py_bf_getbuffer, get_buffer },
	{ Py_mp_length, length },
	{ Py_mp_subscript, get_item },
	{ Py_mp_ass_subscript, set_item },
	{ Py_sq_length, length },
	{ Py_sq_item, item },
	{ 0, NULL },
};

static PyType_Spec spec = {
	.name = "kvmcpu._kvm.Memory",
	.basicsize = sizeof(struct pc_memory),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
		 Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = slots,
};

int pc_memory_init(PyObject *module, struct pc_state *state)
{
	state->Memory = pc_add_type(module, &spec, NULL);
	return state->Memory ? 0 : -1;
}
