// SPDX-License-Identifier: MIT
/*
 * Register files as structured objects: a type for each file and each structure in it, made from the core's
 * tables. An object is a live view of a vCPU's file, a copy of one, or a part of either.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "arch/arch.h"
#include "module.h"

/*
 * What a type is made from, the register files' first and then those of the structures in them. Types keep
 * pointers to it, so it is made once for all interpreters and never changes or goes.
 */
struct shape {
	char name[48];
	const struct kc_field *fields;
	PyGetSetDef *descriptors;
	bool splits; /* has a field in two halves */
};
static struct shape shapes[PC_REGISTER_TYPES_MAX];
static unsigned int shape_count;
static bool shapes_made;
static pthread_once_t shapes_once = PTHREAD_ONCE_INIT;

static PyObject *field_get(PyObject *object, void *closure);
static int field_set(PyObject *object, PyObject *value, void *closure);

static const char *short_name(const char *name)
{
	return strrchr(name, '.') + 1;
}

static size_t count_fields(const struct kc_field *fields)
{
	size_t count = 0;

	while (fields[count].kind != KC_FIELD_END)
		count++;
	return count;
}

static bool has_shape(const struct kc_field *fields)
{
	for (unsigned int i = 0; i < shape_count; i++)
		if (shapes[i].fields == fields)
			return true;
	return false;
}

static bool add_shape(const char *name, const struct kc_field *fields)
{
	struct shape *shape = &shapes[shape_count];
	size_t count = count_fields(fields);

	if (shape_count == PC_REGISTER_TYPES_MAX)
		return false;
	shape->descriptors = calloc(count + 1, sizeof(*shape->descriptors));
	if (!shape->descriptors)
		return false;
	shape->splits = false;
	for (size_t i = 0; i < count; i++) {
		shape->splits |= fields[i].kind == KC_FIELD_SPLIT;
		shape->descriptors[i] = (PyGetSetDef){ fields[i].name, field_get, field_set,
						       pc_doc(name, fields[i].name),
						       (void *)&fields[i] };
	}
	snprintf(shape->name, sizeof(shape->name), "kvmcpu._kvm.%s", name);
	shape->fields = fields;
	shape_count++;
	return true;
}

static void make_shapes(void)
{
	for (unsigned int i = 0; i < kc_arch_register_file_count; i++)
		if (!add_shape(kc_arch_register_files[i].type, kc_arch_register_files[i].fields))
			return;
	/* The list grows while it is walked: structures in structures come too. */
	for (unsigned int i = 0; i < shape_count; i++)
		for (const struct kc_field *f = shapes[i].fields; f->kind != KC_FIELD_END; f++)
			if (f->kind == KC_FIELD_STRUCT && !has_shape(f->fields) &&
			    !add_shape(f->type, f->fields))
				return;
	shapes_made = true;
}

struct pc_registers {
	PyObject_HEAD
	struct pc_vcpu *vcpu; /* a live view of its file; NULL: a copy, or a part of one */
	struct pc_registers *whole; /* the copy that this is a part of */
	uint8_t *bytes; /* a copy's own */
	const struct kc_field *fields;
	unsigned int file; /* in kc_arch_files */
	bool splits; /* has a field in two halves */
	bool nested; /* a structure inside a register file */
	size_t offset, size; /* of the structure in the file, or in the copy's bytes */
	size_t split; /* of a copy: kc_arch_split_offset() */
};

/* The bytes of a register file for the length of an access. */
struct access {
	struct pc_vcpu *vcpu; /* claimed; NULL for copies */
	uint8_t *data; /* where the structure begins */
	size_t split;
};

static int access_begin(struct pc_registers *self, bool write, struct access *access)
{
	struct pc_state *state = pc_state_of_type(Py_TYPE(self));
	struct kc_vcpu *vcpu;
	struct kc_error err;
	uint8_t *file;

	if (!self->vcpu) {
		struct pc_registers *whole = self->whole ? self->whole : self;

		*access = (struct access){ NULL, whole->bytes + self->offset, self->split };
		return 0;
	}
	if (pc_vcpu_claim(state, self->vcpu))
		return -1;
	vcpu = self->vcpu->vcpu;
	file = write ? kc_context_write(vcpu, self->file, &err)
		     : kc_context_read(vcpu, self->file, &err);
	if (!file) {
		pc_raise(state, &err, (PyObject *)self->vcpu);
		pc_vcpu_release(self->vcpu);
		return -1;
	}
	*access = (struct access){ self->vcpu, file + self->offset,
				   self->splits ? kc_arch_split_offset(vcpu) : 0 };
	return 0;
}

static void access_end(struct access *access)
{
	if (access->vcpu)
		pc_vcpu_release(access->vcpu);
}

/* ---- between bytes and ints ---- */

static PyObject *int_from_bytes(const uint8_t *bytes, size_t size)
{
	uint64_t number = 0;

	if (size > sizeof(number))
		return PyObject_CallMethod((PyObject *)&PyLong_Type, "from_bytes", "y#s", bytes,
					   (Py_ssize_t)size, "little");
	memcpy(&number, bytes, size);
	return PyLong_FromUnsignedLongLong(number);
}

static int does_not_fit(const struct kc_field *field, PyObject *value, size_t size)
{
	if (PyErr_ExceptionMatches(PyExc_OverflowError))
		PyErr_Format(PyExc_ValueError, "%s: %R does not fit in %zu bits", field->name,
			     value, 8 * size);
	return -1;
}

static int int_to_bytes(const struct kc_field *field, PyObject *value, uint8_t *bytes)
{
	size_t size = field->kind == KC_FIELD_SPLIT ? 2 * (size_t)field->size : field->size;
	PyObject *number = PyNumber_Index(value);
	int result = -1;

	if (!number)
		return -1;
	if (size <= 8) {
		uint64_t n = PyLong_AsUnsignedLongLong(number);

		if (n == (uint64_t)-1 && PyErr_Occurred()) {
			does_not_fit(field, number, size);
		} else if (size < 8 && n >> (8 * size)) {
			PyErr_SetNone(PyExc_OverflowError);
			does_not_fit(field, number, size);
		} else {
			memcpy(bytes, &n, size);
			result = 0;
		}
	} else {
		PyObject *made =
			PyObject_CallMethod(number, "to_bytes", "ns", (Py_ssize_t)size, "little");

		if (made) {
			memcpy(bytes, PyBytes_AS_STRING(made), size);
			Py_DECREF(made);
			result = 0;
		} else {
			does_not_fit(field, number, size);
		}
	}
	Py_DECREF(number);
	return result;
}

/* ---- making them ---- */

static PyTypeObject *part_type(struct pc_state *state, const struct kc_field *fields)
{
	for (unsigned int i = 0; i < shape_count; i++)
		if (shapes[i].fields == fields)
			return state->register_types[i];
	Py_UNREACHABLE();
}

static struct pc_registers *allocate(PyTypeObject *type)
{
	return (struct pc_registers *)type->tp_alloc(type, 0);
}

PyObject *pc_register_file_new(struct pc_state *state, struct pc_vcpu *vcpu, unsigned int i)
{
	struct pc_registers *self = allocate(state->register_types[i]);

	if (!self)
		return NULL;
	self->vcpu = (struct pc_vcpu *)Py_NewRef(vcpu);
	self->fields = kc_arch_register_files[i].fields;
	self->file = kc_arch_register_files[i].file;
	self->splits = shapes[i].splits;
	return (PyObject *)self;
}

static PyObject *part_new(struct pc_registers *self, const struct kc_field *field)
{
	PyTypeObject *type = part_type(pc_state_of_type(Py_TYPE(self)), field->fields);
	struct pc_registers *part = allocate(type);

	if (!part)
		return NULL;
	part->vcpu = (struct pc_vcpu *)Py_XNewRef(self->vcpu);
	if (!self->vcpu)
		part->whole = (struct pc_registers *)Py_NewRef(self->whole ? self->whole : self);
	part->fields = field->fields;
	part->file = self->file;
	part->nested = true;
	part->offset = self->offset + field->offset;
	part->size = field->size;
	return (PyObject *)part;
}

static PyObject *registers_copy(PyObject *object, PyObject *ignored)
{
	struct pc_registers *self = (struct pc_registers *)object, *copy;
	struct access access;
	size_t size;

	if (access_begin(self, false, &access))
		return NULL;
	if (self->size)
		size = self->size;
	else
		size = self->vcpu->vcpu->context.size[self->file];
	copy = allocate(Py_TYPE(self));
	if (copy) {
		copy->fields = self->fields;
		copy->file = self->file;
		copy->nested = self->nested;
		copy->splits = self->splits;
		copy->size = size;
		copy->split = access.split;
		copy->bytes = PyMem_Malloc(size);
		if (copy->bytes)
			memcpy(copy->bytes, access.data, size);
	}
	access_end(&access);
	if (copy && !copy->bytes) {
		Py_DECREF(copy);
		return PyErr_NoMemory();
	}
	return (PyObject *)copy;
}

static int registers_traverse(PyObject *object, visitproc visit, void *arg)
{
	struct pc_registers *self = (struct pc_registers *)object;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->vcpu);
	Py_VISIT(self->whole);
	return 0;
}

static void registers_dealloc(PyObject *object)
{
	struct pc_registers *self = (struct pc_registers *)object;
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	Py_XDECREF(self->vcpu);
	Py_XDECREF(self->whole);
	PyMem_Free(self->bytes);
	type->tp_free(self);
	Py_DECREF(type);
}

/* ---- reading ---- */

static PyObject *lacking(struct pc_registers *self, const struct kc_field *field)
{
	return PyErr_Format(PyExc_AttributeError, "this processor has no %s (%s)", field->name,
			    short_name(Py_TYPE(self)->tp_name));
}

static PyObject *field_get(PyObject *object, void *closure)
{
	struct pc_registers *self = (struct pc_registers *)object;
	const struct kc_field *field = closure;
	uint8_t bytes[KC_FIELD_BYTES];
	struct access access;
	size_t size;

	if (field->kind == KC_FIELD_STRUCT)
		return part_new(self, field);
	if (access_begin(self, false, &access))
		return NULL;
	size = kc_field_get(field, access.data, access.split, bytes);
	access_end(&access);
	return size ? int_from_bytes(bytes, size) : lacking(self, field);
}

static PyObject *as_dict(const struct kc_field *fields, const uint8_t *data, size_t split)
{
	PyObject *dict = PyDict_New();

	for (const struct kc_field *f = fields; dict && f->kind != KC_FIELD_END; f++) {
		uint8_t bytes[KC_FIELD_BYTES];
		PyObject *value;
		size_t size;

		if (f->kind == KC_FIELD_STRUCT) {
			value = as_dict(f->fields, data + f->offset, 0);
		} else {
			size = kc_field_get(f, data, split, bytes);
			if (!size)
				continue;
			value = int_from_bytes(bytes, size);
		}
		if (!value || PyDict_SetItemString(dict, f->name, value))
			Py_CLEAR(dict);
		Py_XDECREF(value);
	}
	return dict;
}

static PyObject *registers_as_dict(PyObject *object, PyObject *ignored)
{
	struct pc_registers *self = (struct pc_registers *)object;
	struct access access;
	PyObject *dict;

	if (access_begin(self, false, &access))
		return NULL;
	dict = as_dict(self->fields, access.data, access.split);
	access_end(&access);
	return dict;
}

static PyObject *registers_repr(PyObject *object)
{
	struct pc_registers *self = (struct pc_registers *)object;
	kc_auto_free char *text = NULL;
	struct access access;
	size_t size;
	FILE *out;

	if (access_begin(self, false, &access))
		return NULL;
	out = open_memstream(&text, &size);
	if (out) {
		fputs(short_name(Py_TYPE(self)->tp_name), out);
		if (self->nested) {
			fputc('(', out);
			kc_fields_print_line(out, self->fields, access.data, access.split);
		} else {
			fputs("(\n", out);
			kc_fields_print(out, self->fields, access.data, access.split, "  ");
		}
		fputc(')', out);
	}
	access_end(&access);
	if (!out || fclose(out))
		return PyErr_NoMemory();
	return PyUnicode_FromStringAndSize(text, (Py_ssize_t)size);
}

/* A dict of a mapping or of another register file; NULL without an exception for anything else. */
static PyObject *dict_of(struct pc_state *state, PyObject *values)
{
	PyObject *dict;

	if (PyObject_TypeCheck(values, state->RegisterFile))
		return registers_as_dict(values, NULL);
	if (!PyDict_Check(values) && !PyObject_HasAttrString(values, "keys"))
		return NULL;
	dict = PyDict_New();
	if (dict && PyDict_Update(dict, values))
		Py_CLEAR(dict);
	return dict;
}

static PyObject *registers_richcompare(PyObject *self, PyObject *other, int op)
{
	struct pc_state *state = pc_state_of_type(Py_TYPE(self));
	PyObject *mine, *theirs, *result = NULL;

	if ((op != Py_EQ && op != Py_NE) ||
	    (PyObject_TypeCheck(other, state->RegisterFile) && Py_TYPE(other) != Py_TYPE(self)))
		Py_RETURN_NOTIMPLEMENTED;
	theirs = dict_of(state, other);
	if (!theirs) {
		if (PyErr_Occurred())
			return NULL;
		Py_RETURN_NOTIMPLEMENTED;
	}
	mine = registers_as_dict(self, NULL);
	if (mine)
		result = PyObject_RichCompare(mine, theirs, op);
	Py_XDECREF(mine);
	Py_DECREF(theirs);
	return result;
}

/* ---- writing: first everything is looked at, then the file is touched ---- */

struct change {
	const struct kc_field *field;
	size_t base; /* of the structure that has the field */
	bool nested;
	uint8_t bytes[KC_FIELD_BYTES];
};

struct changes {
	struct change *items;
	size_t count, capacity;
};

static int changes_add(struct changes *changes, const struct kc_field *field, size_t base,
		       bool nested, PyObject *value)
{
	struct change *change;

	if (changes->count == changes->capacity) {
		size_t capacity = changes->capacity ? 2 * changes->capacity : 8;
		struct change *items = PyMem_Realloc(changes->items, capacity * sizeof(*items));

		if (!items) {
			PyErr_NoMemory();
			return -1;
		}
		changes->items = items;
		changes->capacity = capacity;
	}
	change = &changes->items[changes->count];
	*change = (struct change){ .field = field, .base = base, .nested = nested };
	if (int_to_bytes(field, value, change->bytes))
		return -1;
	changes->count++;
	return 0;
}

static const struct kc_field *find_field(const struct kc_field *fields, const char *type,
					 PyObject *name)
{
	const char *text;

	if (!PyUnicode_Check(name)) {
		PyErr_Format(PyExc_TypeError, "%s: a field's name is a str, not %.100s", type,
			     Py_TYPE(name)->tp_name);
		return NULL;
	}
	text = PyUnicode_AsUTF8(name);
	if (!text)
		return NULL;
	for (const struct kc_field *f = fields; f->kind != KC_FIELD_END; f++)
		if (!strcmp(f->name, text))
			return f;
	PyErr_Format(PyExc_AttributeError, "%s has no field %R", type, name);
	return NULL;
}

static int collect(struct pc_state *state, struct changes *changes, const struct kc_field *fields,
		   const char *type, size_t base, bool nested, PyObject *values)
{
	PyObject *dict = NULL, *name, *value;
	Py_ssize_t at = 0;
	int result = 0;

	if (!PyObject_TypeCheck(values, state->RegisterFile) ||
	    !strcmp(short_name(Py_TYPE(values)->tp_name), type))
		dict = dict_of(state, values);
	if (!dict) {
		if (!PyErr_Occurred())
			PyErr_Format(PyExc_TypeError, "a %s or a mapping is needed, not %.100s",
				     type, Py_TYPE(values)->tp_name);
		return -1;
	}
	while (!result && PyDict_Next(dict, &at, &name, &value)) {
		const struct kc_field *field = find_field(fields, type, name);

		if (!field)
			result = -1;
		else if (field->kind == KC_FIELD_STRUCT)
			result = collect(state, changes, field->fields, field->type,
					 base + field->offset, true, value);
		else
			result = changes_add(changes, field, base, nested, value);
	}
	Py_DECREF(dict);
	return result;
}

static int apply(struct pc_registers *self, const struct changes *changes)
{
	struct access access;

	if (!changes->count)
		return 0;
	/* What the processor lacks is found before the file is touched. */
	for (size_t i = 0; i < changes->count; i++) {
		const struct kc_field *field = changes->items[i].field;

		if (field->kind != KC_FIELD_SPLIT)
			continue;
		if (access_begin(self, false, &access))
			return -1;
		access_end(&access);
		if (!access.split) {
			lacking(self, field);
			return -1;
		}
		break;
	}
	if (access_begin(self, true, &access))
		return -1;
	for (size_t i = 0; i < changes->count; i++) {
		const struct change *change = &changes->items[i];

		kc_field_put(change->field, access.data + change->base, access.split,
			     change->bytes);
		if (!self->nested && !change->nested)
			kc_arch_field_written(self->file, access.data, change->field);
	}
	access_end(&access);
	return 0;
}

static int registers_set(struct pc_registers *self, PyObject *values)
{
	struct pc_state *state = pc_state_of_type(Py_TYPE(self));
	struct changes changes = { 0 };
	int result = collect(state, &changes, self->fields, short_name(Py_TYPE(self)->tp_name), 0,
			     self->nested, values);

	if (!result)
		result = apply(self, &changes);
	PyMem_Free(changes.items);
	return result;
}

static int field_set(PyObject *object, PyObject *value, void *closure)
{
	struct pc_registers *self = (struct pc_registers *)object;
	const struct kc_field *field = closure;
	struct change change = { .field = field, .nested = self->nested };
	struct changes changes = { &change, 1, 1 };
	PyObject *part;
	int result;

	if (!value) {
		PyErr_Format(PyExc_AttributeError, "%s cannot be deleted", field->name);
		return -1;
	}
	if (field->kind == KC_FIELD_STRUCT) {
		part = part_new(self, field);
		result = part ? registers_set((struct pc_registers *)part, value) : -1;
		Py_XDECREF(part);
		return result;
	}
	if (int_to_bytes(field, value, change.bytes))
		return -1;
	return apply(self, &changes);
}

static PyObject *registers_update(PyObject *self, PyObject *values)
{
	if (registers_set((struct pc_registers *)self, values))
		return NULL;
	Py_RETURN_NONE;
}

int pc_register_file_assign(struct pc_state *state, struct pc_vcpu *vcpu, unsigned int i,
			    PyObject *value)
{
	PyObject *view;
	int result;

	if (!value) {
		PyErr_Format(PyExc_AttributeError, "%s cannot be deleted",
			     kc_arch_register_files[i].attribute);
		return -1;
	}
	view = pc_register_file_new(state, vcpu, i);
	if (!view)
		return -1;
	result = registers_set((struct pc_registers *)view, value);
	Py_DECREF(view);
	return result;
}

/* ---- the types ---- */

static PyMethodDef registers_methods[] = {
	{ "as_dict", registers_as_dict, METH_NOARGS, DOC_RegisterFile_as_dict },
	{ "copy", registers_copy, METH_NOARGS, DOC_RegisterFile_copy },
	{ "update", registers_update, METH_O, DOC_RegisterFile_update },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot base_slots[] = {
	{ Py_tp_doc, (void *)DOC_RegisterFile },      { Py_tp_dealloc, registers_dealloc },
	{ Py_tp_traverse, registers_traverse },	      { Py_tp_repr, registers_repr },
	{ Py_tp_richcompare, registers_richcompare }, { Py_tp_hash, PyObject_HashNotImplemented },
	{ Py_tp_methods, registers_methods },	      { 0, NULL },
};

static PyType_Spec base_spec = {
	.name = "kvmcpu._kvm.RegisterFile",
	.basicsize = sizeof(struct pc_registers),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
		 Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = base_slots,
};

/* The class attribute `fields`: the names in order. */
static int add_names(PyTypeObject *type, const struct kc_field *fields)
{
	size_t count = fields ? count_fields(fields) : 0;
	PyObject *names = PyTuple_New((Py_ssize_t)count);
	int result;

	for (size_t i = 0; names && i < count; i++) {
		PyObject *name = PyUnicode_FromString(fields[i].name);

		if (!name)
			Py_CLEAR(names);
		else
			PyTuple_SET_ITEM(names, (Py_ssize_t)i, name);
	}
	if (!names)
		return -1;
	result = PyObject_SetAttrString((PyObject *)type, "fields", names);
	Py_DECREF(names);
	return result;
}

static int add_type(PyObject *module, struct pc_state *state, unsigned int i)
{
	const struct shape *shape = &shapes[i];
	PyType_Slot slots[] = {
		{ Py_tp_doc, (void *)pc_doc(short_name(shape->name), NULL) },
		{ Py_tp_getset, shape->descriptors },
		{ 0, NULL },
	};
	PyType_Spec spec = {
		.name = shape->name,
		.basicsize = sizeof(struct pc_registers),
		.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
		.slots = slots,
	};

	state->register_types[i] = pc_add_type(module, &spec, state->RegisterFile);
	if (!state->register_types[i])
		return -1;
	return add_names(state->register_types[i], shape->fields);
}

int pc_registers_init(PyObject *module, struct pc_state *state)
{
	pthread_once(&shapes_once, make_shapes);
	if (!shapes_made) {
		PyErr_NoMemory();
		return -1;
	}
	state->RegisterFile = pc_add_type(module, &base_spec, NULL);
	if (!state->RegisterFile || add_names(state->RegisterFile, NULL))
		return -1;
	for (unsigned int i = 0; i < shape_count; i++)
		if (add_type(module, state, i))
			return -1;
	return 0;
}
