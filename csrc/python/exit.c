// SPDX-License-Identifier: MIT
/*
 * Exits as objects: what the kernel said about the last exit, kept as it was then, in a class for each reason.
 * What a handler answers goes into the run structure as long as the vCPU has not had another exit since.
 */
#include "exits.h"

#include <string.h>

#include "module.h"

#define RUN_BYTES offsetof(struct kvm_run, kvm_valid_regs)

struct pc_exit {
	PyObject_HEAD
	struct pc_vcpu *vcpu;
	uint64_t number; /* kc_vcpu.exits.total */
	PyObject *data; /* bytes of an IoExit, which the run structure only points to; else NULL */
	union {
		uint64_t align;
		uint8_t run[RUN_BYTES]; /* the kernel's account of the exit */
	};
};

enum kind {
	UINT,
	BOOL,
	DIRECTION,
	IO_DATA,
	MMIO_DATA,
	WORDS, /* a tuple of .count words */
	COUNTED_WORDS, /* a tuple of as many words as the number at .count_at says, at most .count */
	END,
};

struct exit_field {
	const char *name;
	enum kind kind;
	size_t offset, size; /* in struct kvm_run */
	bool answer; /* can be set */
	size_t count, count_at;
};

#define AT(member) offsetof(struct kvm_run, member)
#define NUMBER(name, member) { name, UINT, AT(member), sizeof(((struct kvm_run *)0)->member) }
#define ANSWER(name, member) { name, UINT, AT(member), sizeof(((struct kvm_run *)0)->member), true }

static const struct exit_field no_fields[] = { { .kind = END } };

static const struct exit_field io_fields[] = {
	{ "direction", DIRECTION, AT(io.direction), 1 },
	NUMBER("port", io.port),
	NUMBER("size", io.size),
	NUMBER("count", io.count),
	{ "data", IO_DATA, .answer = true },
	{ .kind = END },
};

static const struct exit_field mmio_fields[] = {
	NUMBER("address", mmio.phys_addr),
	NUMBER("size", mmio.len),
	{ "is_write", BOOL, AT(mmio.is_write), 1 },
	{ "data", MMIO_DATA, .answer = true },
	{ .kind = END },
};

static const struct exit_field hypercall_fields[] = {
	NUMBER("nr", hypercall.nr),
	{ "args", WORDS, AT(hypercall.args), 8, .count = 6 },
	ANSWER("ret", hypercall.ret),
	{ .kind = END },
};

#if defined(__x86_64__)
static const struct exit_field debug_fields[] = {
	NUMBER("exception", debug.arch.exception),
	NUMBER("pc", debug.arch.pc),
	NUMBER("dr6", debug.arch.dr6),
	NUMBER("dr7", debug.arch.dr7),
	{ .kind = END },
};
#else
#define debug_fields no_fields
#endif

static const struct exit_field fail_entry_fields[] = {
	NUMBER("hardware_entry_failure_reason", fail_entry.hardware_entry_failure_reason),
	/* It came with Linux 5.9, behind the reason. */
	{ "cpu", UINT, AT(fail_entry) + 8, 4 },
	{ .kind = END },
};

static const struct exit_field unknown_fields[] = {
	NUMBER("hardware_exit_reason", hw.hardware_exit_reason),
	{ .kind = END },
};

static const struct exit_field exception_fields[] = {
	NUMBER("exception", ex.exception),
	NUMBER("error_code", ex.error_code),
	{ .kind = END },
};

static const struct exit_field internal_fields[] = {
	NUMBER("suberror", internal.suberror),
	{ "data", COUNTED_WORDS, AT(internal.data), 8, false, 16, AT(internal.ndata) },
	{ .kind = END },
};

static const struct exit_field system_event_fields[] = {
	NUMBER("type", system_event.type),
	/* Their names came with Linux 5.18. */
	{ "data", COUNTED_WORDS, AT(system_event) + 8, 8, false, 16, AT(system_event) + 4 },
	{ .kind = END },
};

static const struct exit_field msr_fields[] = {
	NUMBER("index", msr.index),
	NUMBER("msr_reason", msr.reason),
	ANSWER("data", msr.data),
	ANSWER("error", msr.error),
	{ .kind = END },
};

static const struct exit_field memory_fault_fields[] = {
	{ "flags", UINT, AT(hw), 8 },
	{ "gpa", UINT, AT(hw) + 8, 8 },
	{ "size", UINT, AT(hw) + 16, 8 },
	{ .kind = END },
};

#define CLASS(type) "kvmcpu._kvm." #type, DOC_##type
static const struct exit_class {
	const char *name, *doc;
	const struct exit_field *fields;
	uint32_t reasons[2]; /* the same one twice where there is one */
} classes[] = {
	{ CLASS(IoExit), io_fields, { KVM_EXIT_IO, KVM_EXIT_IO } },
	{ CLASS(MmioExit), mmio_fields, { KVM_EXIT_MMIO, KVM_EXIT_MMIO } },
	{ CLASS(HypercallExit), hypercall_fields, { KVM_EXIT_HYPERCALL, KVM_EXIT_HYPERCALL } },
	{ CLASS(DebugExit), debug_fields, { KVM_EXIT_DEBUG, KVM_EXIT_DEBUG } },
	{ CLASS(HltExit), no_fields, { KVM_EXIT_HLT, KVM_EXIT_HLT } },
	{ CLASS(IrqWindowExit), no_fields, { KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_IRQ_WINDOW_OPEN } },
	{ CLASS(ShutdownExit), no_fields, { KVM_EXIT_SHUTDOWN, KVM_EXIT_SHUTDOWN } },
	{ CLASS(IntrExit), no_fields, { KVM_EXIT_INTR, KVM_EXIT_INTR } },
	{ CLASS(FailEntryExit), fail_entry_fields, { KVM_EXIT_FAIL_ENTRY, KVM_EXIT_FAIL_ENTRY } },
	{ CLASS(UnknownExit), unknown_fields, { KVM_EXIT_UNKNOWN, KVM_EXIT_UNKNOWN } },
	{ CLASS(ExceptionExit), exception_fields, { KVM_EXIT_EXCEPTION, KVM_EXIT_EXCEPTION } },
	{ CLASS(InternalErrorExit),
	  internal_fields,
	  { KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTERNAL_ERROR } },
	{ CLASS(SystemEventExit),
	  system_event_fields,
	  { KVM_EXIT_SYSTEM_EVENT, KVM_EXIT_SYSTEM_EVENT } },
	{ CLASS(MsrExit), msr_fields, { KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR } },
	{ CLASS(DirtyRingFullExit),
	  no_fields,
	  { KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_DIRTY_RING_FULL } },
	{ CLASS(MemoryFaultExit),
	  memory_fault_fields,
	  { KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MEMORY_FAULT } },
};

#define CLASS_COUNT (sizeof(classes) / sizeof(classes[0]))
#define FIELDS_MAX 8
_Static_assert(CLASS_COUNT <= PC_EXIT_TYPES_MAX, "more classes than the module's state holds");

static PyObject *field_get(PyObject *object, void *closure);
static int field_set(PyObject *object, PyObject *value, void *closure);

/* Types keep pointers to their descriptors: made once for all interpreters, and never changed. */
static PyGetSetDef descriptors[CLASS_COUNT][FIELDS_MAX + 1];
static pthread_once_t descriptors_once = PTHREAD_ONCE_INIT;

static const char *short_name(const char *name)
{
	return strrchr(name, '.') + 1;
}

static void make_descriptors(void)
{
	for (size_t i = 0; i < CLASS_COUNT; i++) {
		const struct exit_field *field = classes[i].fields;

		for (int n = 0; n < FIELDS_MAX && field->kind != END; n++, field++)
			descriptors[i][n] = (PyGetSetDef){
				field->name,
				field_get,
				field->answer ? field_set : NULL,
				pc_doc(short_name(classes[i].name), field->name),
				(void *)field,
			};
	}
}

static const struct exit_class *class_of(uint32_t reason)
{
	for (size_t i = 0; i < CLASS_COUNT; i++)
		if (classes[i].reasons[0] == reason || classes[i].reasons[1] == reason)
			return &classes[i];
	return NULL;
}

/* ---- making one ---- */

/* Where the data of a port access are; NULL if the kernel's offset is nonsense. */
static uint8_t *io_data(struct kc_vcpu *vcpu, const struct kvm_run *run)
{
	uint64_t size = (uint64_t)run->io.size * run->io.count;

	if (run->io.data_offset > vcpu->run_size || size > vcpu->run_size - run->io.data_offset)
		return NULL;
	return (uint8_t *)vcpu->run + run->io.data_offset;
}

static int take_io_data(struct pc_exit *self, struct kc_vcpu *vcpu)
{
	const struct kvm_run *run = vcpu->run;
	const uint8_t *data = io_data(vcpu, run);

	self->data = PyBytes_FromStringAndSize(
		(const char *)data,
		data ? (Py_ssize_t)run->io.size * (Py_ssize_t)run->io.count : 0);
	return self->data ? 0 : -1;
}

static PyObject *make(struct pc_state *state, struct pc_vcpu *vcpu)
{
	const struct exit_class *class = class_of(vcpu->vcpu->run->exit_reason);
	PyTypeObject *type = class ? state->exit_types[class - classes] : state->Exit;
	struct pc_exit *self = (struct pc_exit *)type->tp_alloc(type, 0);

	if (!self)
		return NULL;
	self->vcpu = (struct pc_vcpu *)Py_NewRef(vcpu);
	self->number = vcpu->vcpu->exits.total;
	memcpy(self->run, vcpu->vcpu->run, RUN_BYTES);
	if (vcpu->vcpu->run->exit_reason == KVM_EXIT_IO && take_io_data(self, vcpu->vcpu))
		Py_CLEAR(self);
	return (PyObject *)self;
}

PyObject *pc_exit_new(struct pc_state *state, struct pc_vcpu *vcpu)
{
	PyObject *self;
	struct kc_error err;

	/* Also after the VM was closed in a handler, as long as the run is not over. */
	if (kc_vcpu_claim(vcpu->vcpu, &err))
		return pc_raise(state, &err, (PyObject *)vcpu);
	if (!vcpu->vcpu->run && kc_vcpu_check(vcpu->vcpu, &err))
		self = pc_raise(state, &err, (PyObject *)vcpu);
	else if (!vcpu->vcpu->run || !vcpu->vcpu->exits.total)
		self = Py_NewRef(Py_None);
	else
		self = make(state, vcpu);
	kc_vcpu_release(vcpu->vcpu);
	return self;
}

static int exit_traverse(PyObject *object, visitproc visit, void *arg)
{
	struct pc_exit *self = (struct pc_exit *)object;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->vcpu);
	return 0;
}

static void exit_dealloc(PyObject *object)
{
	struct pc_exit *self = (struct pc_exit *)object;
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	Py_XDECREF(self->vcpu);
	Py_XDECREF(self->data);
	type->tp_free(self);
	Py_DECREF(type);
}

/* ---- fields ---- */

static const struct kvm_run *run_of(const struct pc_exit *self)
{
	return (const struct kvm_run *)self->run;
}

static uint64_t number_at(const struct pc_exit *self, size_t offset, size_t size)
{
	uint64_t number = 0;

	memcpy(&number, self->run + offset, size);
	return number;
}

static size_t mmio_size(const struct kvm_run *run)
{
	return run->mmio.len < sizeof(run->mmio.data) ? run->mmio.len : sizeof(run->mmio.data);
}

static PyObject *words(const struct pc_exit *self, const struct exit_field *field)
{
	size_t count = field->count;
	PyObject *tuple;

	if (field->kind == COUNTED_WORDS && number_at(self, field->count_at, 4) < count)
		count = number_at(self, field->count_at, 4);
	tuple = PyTuple_New((Py_ssize_t)count);
	for (size_t i = 0; tuple && i < count; i++) {
		PyObject *word = PyLong_FromUnsignedLongLong(
			number_at(self, field->offset + i * field->size, field->size));

		if (!word)
			Py_CLEAR(tuple);
		else
			PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, word);
	}
	return tuple;
}

static PyObject *field_get(PyObject *object, void *closure)
{
	struct pc_exit *self = (struct pc_exit *)object;
	const struct exit_field *field = closure;
	const struct kvm_run *run = run_of(self);

	switch (field->kind) {
	case UINT:
		return PyLong_FromUnsignedLongLong(number_at(self, field->offset, field->size));
	case BOOL:
		return PyBool_FromLong(self->run[field->offset]);
	case DIRECTION:
		return PyUnicode_FromString(self->run[field->offset] == KVM_EXIT_IO_IN ? "in"
										       : "out");
	case IO_DATA:
		return Py_NewRef(self->data);
	case MMIO_DATA:
		return PyBytes_FromStringAndSize((const char *)run->mmio.data,
						 (Py_ssize_t)mmio_size(run));
	case WORDS:
	case COUNTED_WORDS:
		return words(self, field);
	case END:
		break;
	}
	Py_UNREACHABLE();
}

/* ---- answers ---- */

/* The vCPU's run structure for an answer: claimed. NULL: an exception. */
static struct kvm_run *answer_begin(struct pc_exit *self)
{
	struct pc_state *state = pc_state_of_type(Py_TYPE(self));

	if (pc_vcpu_claim(state, self->vcpu))
		return NULL;
	if (self->vcpu->vcpu->exits.total == self->number)
		return self->vcpu->vcpu->run;
	pc_vcpu_release(self->vcpu);
	PyErr_SetString(state->errors[PC_StateError],
			"the vCPU has had another exit since: this one can no longer be answered");
	return NULL;
}

static int answer_number(struct pc_exit *self, const struct exit_field *field, PyObject *value)
{
	uint64_t limit = field->size == 8 ? UINT64_MAX : (1ULL << 8 * field->size) - 1, number;
	struct kvm_run *run;

	if (pc_uint(value, field->name, limit, &number))
		return -1;
	run = answer_begin(self);
	if (!run)
		return -1;
	memcpy((uint8_t *)run + field->offset, &number, field->size);
	memcpy(self->run + field->offset, &number, field->size);
	pc_vcpu_release(self->vcpu);
	return 0;
}

static int answer_data(struct pc_exit *self, const struct exit_field *field, PyObject *value)
{
	const struct kvm_run *then = run_of(self);
	bool io = field->kind == IO_DATA;
	size_t size = io ? (size_t)PyBytes_GET_SIZE(self->data) : mmio_size(then);
	PyObject *bytes;
	struct kvm_run *run;
	uint8_t *to;

	if (io ? then->io.direction == KVM_EXIT_IO_OUT : then->mmio.is_write) {
		PyErr_SetString(pc_state_of_type(Py_TYPE(self))->errors[PC_StateError],
				"the guest writes: there is nothing to answer");
		return -1;
	}
	bytes = PyBytes_FromObject(value);
	if (!bytes)
		return -1;
	if ((size_t)PyBytes_GET_SIZE(bytes) != size) {
		PyErr_Format(PyExc_ValueError, "data must be %zu bytes long, not %zd", size,
			     PyBytes_GET_SIZE(bytes));
		Py_DECREF(bytes);
		return -1;
	}
	run = answer_begin(self);
	if (!run) {
		Py_DECREF(bytes);
		return -1;
	}
	to = io ? io_data(self->vcpu->vcpu, run) : run->mmio.data;
	if (to)
		memcpy(to, PyBytes_AS_STRING(bytes), size);
	pc_vcpu_release(self->vcpu);
	if (io) {
		Py_SETREF(self->data, bytes);
	} else {
		memcpy(((struct kvm_run *)self->run)->mmio.data, PyBytes_AS_STRING(bytes), size);
		Py_DECREF(bytes);
	}
	return 0;
}

static int field_set(PyObject *object, PyObject *value, void *closure)
{
	const struct exit_field *field = closure;

	if (!value) {
		PyErr_Format(PyExc_AttributeError, "%s cannot be deleted", field->name);
		return -1;
	}
	if (field->kind == UINT)
		return answer_number((struct pc_exit *)object, field, value);
	return answer_data((struct pc_exit *)object, field, value);
}

/* ---- the whole ---- */

static PyObject *get_reason(PyObject *self, void *ignored)
{
	return PyLong_FromUnsignedLong(run_of((struct pc_exit *)self)->exit_reason);
}

static PyObject *get_name(PyObject *self, void *ignored)
{
	return PyUnicode_FromString(kc_exit_name(run_of((struct pc_exit *)self)->exit_reason));
}

static const struct exit_field *fields_of(PyObject *self)
{
	const struct exit_class *class = class_of(run_of((struct pc_exit *)self)->exit_reason);

	return class ? class->fields : no_fields;
}

static int set_item(PyObject *dict, const char *name, PyObject *value)
{
	int failed = value ? PyDict_SetItemString(dict, name, value) : -1;

	Py_XDECREF(value);
	return failed;
}

static PyObject *exit_as_dict(PyObject *self, PyObject *ignored)
{
	PyObject *dict = PyDict_New();

	if (!dict)
		return NULL;
	if (set_item(dict, "reason", get_reason(self, NULL)) ||
	    set_item(dict, "name", get_name(self, NULL)))
		goto failed;
	for (const struct exit_field *field = fields_of(self); field->kind != END; field++)
		if (set_item(dict, field->name, field_get(self, (void *)field)))
			goto failed;
	return dict;
failed:
	Py_DECREF(dict);
	return NULL;
}

/* A number as people write such numbers: counts in decimal, the rest in hex. */
static PyObject *text_of(const struct exit_field *field, PyObject *value)
{
	if (field->kind == UINT && strcmp(field->name, "size") && strcmp(field->name, "count"))
		return PyNumber_ToBase(value, 16);
	if (field->kind == DIRECTION)
		return PyObject_Str(value);
	return PyObject_Repr(value);
}

static PyObject *exit_repr(PyObject *self)
{
	PyObject *text =
		PyUnicode_FromFormat("<%s %s", short_name(Py_TYPE(self)->tp_name),
				     kc_exit_name(run_of((struct pc_exit *)self)->exit_reason));

	for (const struct exit_field *field = fields_of(self); text && field->kind != END;
	     field++) {
		PyObject *value = field_get(self, (void *)field);
		PyObject *shown = value ? text_of(field, value) : NULL;
		PyObject *longer =
			shown ? PyUnicode_FromFormat("%U %s=%U", text, field->name, shown) : NULL;

		Py_XDECREF(value);
		Py_XDECREF(shown);
		Py_SETREF(text, longer);
	}
	if (text)
		Py_SETREF(text, PyUnicode_FromFormat("%U>", text));
	return text;
}

static PyGetSetDef exit_descriptors[] = {
	{ "reason", get_reason, NULL, DOC_Exit_reason, NULL },
	{ "name", get_name, NULL, DOC_Exit_name, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyMethodDef exit_methods[] = {
	{ "as_dict", exit_as_dict, METH_NOARGS, DOC_Exit_as_dict },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot exit_slots[] = {
	{ Py_tp_doc, (void *)DOC_Exit },
	{ Py_tp_dealloc, exit_dealloc },
	{ Py_tp_traverse, exit_traverse },
	{ Py_tp_repr, exit_repr },
	{ Py_tp_getset, exit_descriptors },
	{ Py_tp_methods, exit_methods },
	{ 0, NULL },
};

static PyType_Spec exit_spec = {
	.name = "kvmcpu._kvm.Exit",
	.basicsize = sizeof(struct pc_exit),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE |
		 Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = exit_slots,
};

/* ---- the ring of last exits (V25) ---- */

static PyObject *make_record(PyTypeObject *type, const struct kc_exit_record *record)
{
	PyObject *self = PyStructSequence_New(type);
	PyObject *values[] = {
		PyUnicode_FromString(kc_exit_name(record->reason)),
		PyLong_FromUnsignedLongLong(record->address),
		PyLong_FromLong(record->size),
		PyLong_FromUnsignedLongLong(record->data),
		PyLong_FromUnsignedLongLong(record->latency),
		PyLong_FromUnsignedLongLong(record->tick),
	};
	bool failed = !self;

	for (Py_ssize_t i = 0; i < (Py_ssize_t)Py_ARRAY_LENGTH(values); i++) {
		failed |= !values[i];
		if (self)
			PyStructSequence_SetItem(self, i, values[i]);
		else
			Py_XDECREF(values[i]);
	}
	if (failed)
		Py_CLEAR(self);
	return self;
}

PyObject *pc_last_exits(struct pc_state *state, struct pc_vcpu *vcpu)
{
	struct kc_exit_ring *ring = &vcpu->vcpu->exits;
	uint64_t first;
	PyObject *list;
	struct kc_error err;

	if (kc_vcpu_claim(vcpu->vcpu, &err))
		return pc_raise(state, &err, (PyObject *)vcpu);
	first = ring->total > KC_LAST_EXITS ? ring->total - KC_LAST_EXITS : 0;
	list = PyList_New((Py_ssize_t)(ring->total - first));
	for (uint64_t i = first; list && i < ring->total; i++) {
		PyObject *record =
			make_record(state->ExitRecord, &ring->records[i % KC_LAST_EXITS]);

		if (!record)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, (Py_ssize_t)(i - first), record);
	}
	kc_vcpu_release(vcpu->vcpu);
	return list;
}

static int add_record_type(PyObject *module, struct pc_state *state)
{
	PyStructSequence_Field fields[] = {
		{ "name", DOC_ExitRecord_name },
		{ "address", DOC_ExitRecord_address },
		{ "size", DOC_ExitRecord_size },
		{ "data", DOC_ExitRecord_data },
		{ "latency", DOC_ExitRecord_latency },
		{ "tick", DOC_ExitRecord_tick },
		{ NULL, NULL },
	};
	PyStructSequence_Desc desc = { "kvmcpu._kvm.ExitRecord", DOC_ExitRecord, fields, 6 };

	state->ExitRecord = PyStructSequence_NewType(&desc);
	if (!state->ExitRecord)
		return -1;
	return PyModule_AddType(module, state->ExitRecord);
}

static int add_class(PyObject *module, struct pc_state *state, size_t i)
{
	PyType_Slot slots[] = {
		{ Py_tp_doc, (void *)classes[i].doc },
		{ Py_tp_getset, descriptors[i] },
		{ 0, NULL },
	};
	PyType_Spec spec = {
		.name = classes[i].name,
		.basicsize = sizeof(struct pc_exit),
		.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
		.slots = slots,
	};

	state->exit_types[i] = pc_add_type(module, &spec, state->Exit);
	return state->exit_types[i] ? 0 : -1;
}

int pc_exit_init(PyObject *module, struct pc_state *state)
{
	pthread_once(&descriptors_once, make_descriptors);
	state->Exit = pc_add_type(module, &exit_spec, NULL);
	if (!state->Exit)
		return -1;
	for (size_t i = 0; i < CLASS_COUNT; i++)
		if (add_class(module, state, i))
			return -1;
	return add_record_type(module, state);
}
