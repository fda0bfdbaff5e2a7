// SPDX-License-Identifier: MIT
/* Ranges on the bus, and the devices behind them that call Python. */
#include "module.h"

#include <string.h>

#define CAPSULE "kvmcpu.device"

/*
 * What is behind a range: two callables, in place of which there may be bytes to read and a sink to write to; or a
 * device in C that a capsule holds. The core's range owns it, until its release. The reference stands in the VM's list, through which the
 * collector sees it; in a container of Python's the collector could take it away from under the core.
 */
struct pc_device {
	PyObject_HEAD
	struct pc_vm *vm; /* borrowed: it closes the core's VM, and with it us, before it goes */
	struct pc_device *previous, *next; /* in the VM's list; guarded by the interpreter lock */
	PyObject *read, *write; /* callables; NULL: none */
	struct kc_sink *sink; /* in place of write; NULL */
	Py_buffer cells; /* in place of read: what is read; .obj NULL: none */
	PyObject *capsule;
	struct kc_device device; /* the capsule's */
	enum kc_space space;
	uint64_t base;
	bool string;
};

static struct pc_state *state_of(PyObject *self)
{
	return pc_state_of_type(Py_TYPE(self));
}

/* ---- Device ---- */

static int device_traverse(PyObject *self, visitproc visit, void *arg)
{
	struct pc_device *device = (struct pc_device *)self;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(device->read);
	Py_VISIT(device->write);
	Py_VISIT(device->capsule);
	return 0;
}

/* The capsule stays: the core may still call what it holds, until the VM is closed. */
static int device_clear(PyObject *self)
{
	struct pc_device *device = (struct pc_device *)self;

	Py_CLEAR(device->read);
	Py_CLEAR(device->write);
	return 0;
}

static void device_dealloc(PyObject *self)
{
	struct pc_device *device = (struct pc_device *)self;
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	device_clear(self);
	Py_CLEAR(device->capsule);
	kc_sink_put(device->sink);
	PyBuffer_Release(&device->cells);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyType_Slot device_slots[] = {
	{ Py_tp_dealloc, device_dealloc },
	{ Py_tp_traverse, device_traverse },
	{ Py_tp_clear, device_clear },
	{ 0, NULL },
};

static PyType_Spec device_spec = {
	.name = "kvmcpu._kvm._Device",
	.basicsize = sizeof(struct pc_device),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
		 Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = device_slots,
};

int pc_devices_traverse(struct pc_vm *vm, visitproc visit, void *arg)
{
	for (struct pc_device *device = vm->devices; device; device = device->next)
		Py_VISIT((PyObject *)device);
	return 0;
}

static void join(struct pc_vm *vm, struct pc_device *self)
{
	self->vm = vm;
	self->next = vm->devices;
	if (self->next)
		self->next->previous = self;
	vm->devices = (struct pc_device *)Py_NewRef((PyObject *)self);
}

static void leave(struct pc_device *self)
{
	if (self->next)
		self->next->previous = self->previous;
	if (self->previous)
		self->previous->next = self->next;
	else
		self->vm->devices = self->next;
	self->next = self->previous = NULL;
	Py_DECREF((PyObject *)self);
}

/* ---- answers ---- */

/* An error that names the handler by its range's place, the direction and the access. */
static int bad_answer(PyObject *type, const struct pc_device *self, const struct kc_access *access,
		      const char *what, PyObject *answer)
{
	char place[32];

	snprintf(place, sizeof(place), "0x%llx", (unsigned long long)(self->base + access->offset));
	PyErr_Format(type, "the %s handler of %s %s (%u bytes) returned %R: %s",
		     access->is_write ? "write" : "read", self->space == KC_IO ? "port" : "address",
		     place, (unsigned int)access->size, answer, what);
	return -1;
}

/* An int of at most `limit`. */
static int take_number(const struct pc_device *self, const struct kc_access *access,
		       PyObject *answer, uint64_t limit, const char *type_what,
		       const char *value_what, uint64_t *number)
{
	PyObject *index;
	uint64_t value;

	if (!PyIndex_Check(answer))
		return bad_answer(PyExc_TypeError, self, access, type_what, answer);
	index = PyNumber_Index(answer);
	if (!index)
		return -1;
	value = PyLong_AsUnsignedLongLong(index);
	Py_DECREF(index);
	if (value == UINT64_MAX && PyErr_Occurred()) {
		if (!PyErr_ExceptionMatches(PyExc_OverflowError))
			return -1;
		PyErr_Clear();
	} else if (value <= limit) {
		*number = value;
		return 0;
	}
	return bad_answer(PyExc_ValueError, self, access, value_what, answer);
}

static int take_latency(const struct pc_device *self, struct kc_access *access, PyObject *answer)
{
	return take_number(self, access, answer, UINT64_MAX,
			   "a latency is a number of ticks, or None for none",
			   "a latency is a number of ticks from 0 to 2**64 - 1", &access->latency);
}

static int take_value(const struct pc_device *self, struct kc_access *access, PyObject *answer)
{
	uint64_t limit = access->size < 8 ? (UINT64_C(1) << (access->size * 8)) - 1 : UINT64_MAX;
	uint64_t value;

	if (PyTuple_CheckExact(answer) && PyTuple_GET_SIZE(answer) == 2) {
		if (take_latency(self, access, PyTuple_GET_ITEM(answer, 1)))
			return -1;
		answer = PyTuple_GET_ITEM(answer, 0);
	}
	if (take_number(self, access, answer, limit,
			"a value is an int, or a tuple of an int and a latency in ticks",
			"a value must not be negative and must fit the access", &value))
		return -1;
	kc_access_set_value(access, value);
	return 0;
}

static int take_bytes(const struct pc_device *self, struct kc_access *access, PyObject *answer)
{
	size_t size = (size_t)access->size * access->count;
	Py_buffer view;
	int failed = 0;

	if (!PyObject_CheckBuffer(answer))
		return bad_answer(PyExc_TypeError, self, access, "with string=True it is bytes",
				  answer);
	if (PyObject_GetBuffer(answer, &view, PyBUF_SIMPLE))
		return -1;
	if ((size_t)view.len == size)
		memcpy(access->data, view.buf, size);
	else
		failed = bad_answer(PyExc_ValueError, self, access,
				    "with string=True it is size * count bytes", answer);
	PyBuffer_Release(&view);
	return failed;
}

kc_exit_path static int take_answer(const struct pc_device *self, struct kc_access *access,
				    PyObject *answer)
{
	if (access->is_write)
		return answer == Py_None ? 0 : take_latency(self, access, answer);
	return self->string ? take_bytes(self, access, answer) : take_value(self, access, answer);
}

/* ---- calls ---- */

/*
 * The last argument: what is written; for a string's read the number of items. Nothing for a plain read, with
 * *count then 2 arguments.
 */
static PyObject *last_argument(const struct pc_device *self, const struct kc_access *access)
{
	if (self->string && access->is_write)
		return PyBytes_FromStringAndSize((const char *)access->data,
						 (Py_ssize_t)access->size * access->count);
	if (access->is_write)
		return PyLong_FromUnsignedLongLong(kc_access_value(access));
	return PyLong_FromUnsignedLong(access->count);
}

kc_exit_path static int call_handler(const struct pc_device *self, PyObject *handler,
				     struct kc_access *access)
{
	PyObject *stack[4], **args = stack + 1; /* room for what a bound method puts before them */
	size_t count = access->is_write || self->string ? 3 : 2;
	PyObject *answer = NULL;
	int failed = -1;

	args[0] = PyLong_FromUnsignedLongLong(access->offset);
	args[1] = PyLong_FromUnsignedLong(access->size);
	args[2] = count == 3 ? last_argument(self, access) : NULL;
	if (args[0] && args[1] && (args[2] || count == 2))
		answer = PyObject_Vectorcall(handler, args, count | PY_VECTORCALL_ARGUMENTS_OFFSET,
					     NULL);
	if (answer) {
		failed = take_answer(self, access, answer);
		Py_DECREF(answer);
	}
	Py_XDECREF(args[0]);
	Py_XDECREF(args[1]);
	Py_XDECREF(args[2]);
	return failed;
}

/* Bytes of ours, which the interpreter is not asked for; behind their end all ones. */
static void read_cells(const struct pc_device *self, struct kc_access *access)
{
	const uint8_t *from = (const uint8_t *)self->cells.buf + access->offset;
	size_t size = access->size;

	if (access->offset + size > (size_t)self->cells.len) {
		memset(access->data, 0xff, size * access->count);
		return;
	}
	for (uint32_t i = 0; i < access->count; i++)
		memcpy(access->data + i * size, from, size);
}

/* The core's way in. The handlers are set once and for all: to see that there is none takes no lock. */
kc_exit_path static int device_access(void *opaque, struct kc_access *access, struct kc_error *err)
{
	struct pc_device *self = opaque;
	struct pc_callback callback = { .keep_error = false };
	PyObject *handler = access->is_write ? self->write : self->read;
	int failed;

	if (access->is_write && self->sink) {
		kc_sink_append(self->sink, access->data, (size_t)access->size * access->count);
		return 0;
	}
	if (!access->is_write && self->cells.obj) {
		read_cells(self, access);
		return 0;
	}
	if (!handler) {
		if (!access->is_write)
			memset(access->data, 0xff, (size_t)access->size * access->count);
		return 0;
	}
	pc_enter_python(&callback);
	/* The handler may take its own range off the bus. */
	Py_INCREF(self);
	Py_INCREF(handler);
	failed = call_handler(self, handler, access);
	if (failed)
		failed = pc_callback_failed(err);
	Py_DECREF(handler);
	Py_DECREF(self);
	pc_leave_python(&callback);
	return failed;
}

/* Only a sink: nothing of Python's is ever needed. */
kc_exit_path static int sink_access(void *opaque, struct kc_access *access, struct kc_error *err)
{
	struct pc_device *self = opaque;
	size_t size = (size_t)access->size * access->count;

	if (access->is_write)
		kc_sink_append(self->sink, access->data, size);
	else
		memset(access->data, 0xff, size);
	return 0;
}

static int capsule_access(void *opaque, struct kc_access *access, struct kc_error *err)
{
	struct pc_device *self = opaque;

	return self->device.access(self->device.opaque, access, err);
}

static void device_release(void *opaque)
{
	struct pc_device *self = opaque;
	struct pc_callback callback = { .keep_error = true };

	if (self->capsule && self->device.release)
		self->device.release(self->device.opaque);
	pc_enter_python(&callback);
	leave(self);
	pc_leave_python(&callback);
}

/* ---- VM.map_io(), VM.map_mmio() ---- */

struct request {
	enum kc_space space;
	uint64_t base, size;
	PyObject *read, *write, *device;
	int string, coalesced;
};

static int check_handler(PyObject *handler, const char *name)
{
	if (handler == Py_None || PyCallable_Check(handler))
		return 0;
	PyErr_Format(PyExc_TypeError, "%s must be a callable%s or None, not %.100s", name,
		     *name == 'r' ? ", bytes" : "", Py_TYPE(handler)->tp_name);
	return -1;
}

/* read= is bytes, not a callable. */
static bool reads_cells(const struct request *request)
{
	return PyObject_CheckBuffer(request->read) && !PyCallable_Check(request->read);
}

static int check_request(struct pc_state *state, const struct request *request)
{
	if (request->device != Py_None) {
		if (request->read != Py_None || request->write != Py_None || request->string) {
			PyErr_SetString(PyExc_TypeError,
					"a device in C takes the place of read, write and string");
			return -1;
		}
		if (!PyCapsule_IsValid(request->device, CAPSULE)) {
			PyErr_Format(PyExc_TypeError,
				     "device must be a capsule named \"" CAPSULE "\", not %R",
				     request->device);
			return -1;
		}
		return 0;
	}
	if (!reads_cells(request) && check_handler(request->read, "read"))
		return -1;
	if (Py_IS_TYPE(request->write, state->ByteSink)) {
		if (((struct pc_sink *)request->write)->sink)
			return 0;
		PyErr_SetString(PyExc_RuntimeError, "ByteSink.__init__() was not called");
		return -1;
	}
	return check_handler(request->write, "write");
}

/* Fill the object that stands behind the range, and what the core is to know of it. */
static int fill(struct pc_state *state, struct pc_device *self, const struct request *request)
{
	self->space = request->space;
	self->base = request->base;
	self->string = request->string;
	if (request->device != Py_None) {
		const struct kc_device *device = PyCapsule_GetPointer(request->device, CAPSULE);

		if (!device)
			return -1;
		self->device = *device;
		self->capsule = Py_NewRef(request->device);
		self->string = device->string;
		return 0;
	}
	if (reads_cells(request)) {
		if (PyObject_GetBuffer(request->read, &self->cells, PyBUF_SIMPLE))
			return -1;
		if ((uint64_t)self->cells.len != request->size) {
			PyErr_Format(
				PyExc_ValueError,
				"read has %zd bytes, and the range has %llu: they must be as many",
				self->cells.len, (unsigned long long)request->size);
			return -1;
		}
	} else if (request->read != Py_None) {
		self->read = Py_NewRef(request->read);
	}
	if (Py_IS_TYPE(request->write, state->ByteSink))
		self->sink = kc_sink_get(((struct pc_sink *)request->write)->sink);
	else if (request->write != Py_None)
		self->write = Py_NewRef(request->write);
	return 0;
}

static struct kc_range *bus_map(struct pc_vm *vm, const struct request *request,
				const struct kc_device *device, struct kc_error *err)
{
	struct kc_range *range;
	struct pc_gil gil;

	pc_release(&gil, NULL);
	range = kc_bus_map(vm->vm, request->space, request->base, request->size, device,
			   request->coalesced, err);
	pc_acquire(&gil);
	return range;
}

/* The range's handle; the reference that the core gave with it becomes the handle's. */
static PyObject *adopt(struct pc_state *state, struct pc_vm *vm, struct kc_range *range)
{
	struct pc_range *self = (struct pc_range *)state->BusRange->tp_alloc(state->BusRange, 0);
	struct pc_gil gil;

	if (!self) {
		pc_release(&gil, NULL);
		kc_range_put(range, vm->vm);
		pc_acquire(&gil);
		return NULL;
	}
	self->vm = (struct pc_vm *)Py_NewRef((PyObject *)vm);
	self->range = range;
	return (PyObject *)self;
}

static PyObject *map(struct pc_vm *vm, const struct request *request)
{
	struct pc_state *state = state_of((PyObject *)vm);
	struct kc_device device = { .release = device_release };
	struct pc_device *self;
	struct kc_range *range;
	struct kc_error err;

	if (check_request(state, request))
		return NULL;
	if (kc_vm_check(vm->vm, &err))
		return pc_raise(state, &err, NULL);
	self = (struct pc_device *)state->Device->tp_alloc(state->Device, 0);
	if (!self)
		return NULL;
	if (fill(state, self, request)) {
		Py_DECREF(self);
		return NULL;
	}
	/* Before the core has it: its release may come at once, from another thread. */
	join(vm, self);
	device.access = self->capsule					? capsule_access
			: self->sink && !self->read && !self->cells.obj ? sink_access
									: device_access;
	device.opaque = self;
	/* A sink takes whole strings whatever else is there; a handler for reads need not. */
	device.string = self->string ||
			((self->sink || self->cells.obj) && !self->read && !self->write);
	device.brief_writes = self->sink && self->sink->fd < 0;
	range = bus_map(vm, request, &device, &err);
	if (!range)
		leave(self);
	Py_DECREF(self);
	return range ? adopt(state, vm, range) : pc_raise(state, &err, NULL);
}

PyObject *pc_vm_map_io(PyObject *vm, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "port",   "size",	"read",	  "write",
				 "string", "coalesced", "device", NULL };
	struct request request = {
		.space = KC_IO,
		.read = Py_None,
		.write = Py_None,
		.device = Py_None,
	};
	PyObject *port, *size;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OO$ppO:map_io", names, &port, &size,
					 &request.read, &request.write, &request.string,
					 &request.coalesced, &request.device) ||
	    pc_u64(port, "port", &request.base) || pc_u64(size, "size", &request.size))
		return NULL;
	return map((struct pc_vm *)vm, &request);
}

PyObject *pc_vm_map_mmio(PyObject *vm, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "address", "size", "read", "write", "coalesced", "device", NULL };
	struct request request = {
		.space = KC_MMIO,
		.read = Py_None,
		.write = Py_None,
		.device = Py_None,
	};
	PyObject *address, *size;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO|OO$pO:map_mmio", names, &address, &size,
					 &request.read, &request.write, &request.coalesced,
					 &request.device) ||
	    pc_u64(address, "address", &request.base) || pc_u64(size, "size", &request.size))
		return NULL;
	return map((struct pc_vm *)vm, &request);
}

/* ---- BusRange ---- */

PyObject *pc_range_new(struct pc_state *state, struct pc_vm *vm, struct kc_range *range)
{
	struct pc_gil gil;

	pc_release(&gil, NULL);
	kc_lock_take(&vm->vm->device_lock);
	range->refs++;
	kc_lock_release(&vm->vm->device_lock);
	pc_acquire(&gil);
	return adopt(state, vm, range);
}

static void range_dealloc(PyObject *self)
{
	struct pc_range *object = (struct pc_range *)self;
	PyTypeObject *type = Py_TYPE(self);
	struct pc_gil gil;

	PyObject_GC_UnTrack(self);
	/* In a child of a fork the lock may be held by a thread that is not there. */
	if (object->range && object->vm->vm->fork_generation == kc_fork_generation()) {
		pc_release(&gil, NULL);
		kc_range_put(object->range, object->vm->vm);
		pc_acquire(&gil);
	}
	Py_XDECREF(object->vm);
	type->tp_free(self);
	Py_DECREF(type);
}

static int range_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT((PyObject *)((struct pc_range *)self)->vm);
	return 0;
}

static PyObject *range_compare(PyObject *a, PyObject *b, int op)
{
	bool same;

	if ((op != Py_EQ && op != Py_NE) || Py_TYPE(a) != Py_TYPE(b))
		Py_RETURN_NOTIMPLEMENTED;
	same = ((struct pc_range *)a)->range == ((struct pc_range *)b)->range;
	return PyBool_FromLong(same == (op == Py_EQ));
}

static Py_hash_t range_hash(PyObject *self)
{
	return _Py_HashPointer(((struct pc_range *)self)->range);
}

static bool is_removed(PyObject *self)
{
	/* A pointer that only ever goes from the VM to NULL, under the device lock. */
	return !__atomic_load_n(&((struct pc_range *)self)->range->vm, __ATOMIC_RELAXED);
}

static PyObject *range_repr(PyObject *self)
{
	struct kc_range *range = ((struct pc_range *)self)->range;
	char text[96];

	snprintf(text, sizeof(text), "<BusRange %s 0x%llx-0x%llx%s%s>",
		 range->space == KC_IO ? "io" : "mmio", (unsigned long long)range->base,
		 (unsigned long long)(range->base + (range->size - 1)),
		 range->coalesced ? " coalesced" : "", is_removed(self) ? " removed" : "");
	return PyUnicode_FromString(text);
}

static PyObject *get_address(PyObject *self, void *unused)
{
	return PyLong_FromUnsignedLongLong(((struct pc_range *)self)->range->base);
}

static PyObject *get_size(PyObject *self, void *unused)
{
	return PyLong_FromUnsignedLongLong(((struct pc_range *)self)->range->size);
}

static PyObject *get_space(PyObject *self, void *unused)
{
	bool io = ((struct pc_range *)self)->range->space == KC_IO;

	return PyUnicode_FromString(io ? "io" : "mmio");
}

static PyObject *get_removed(PyObject *self, void *unused)
{
	return PyBool_FromLong(is_removed(self));
}

static PyObject *range_remove(PyObject *self, PyObject *unused)
{
	struct kc_error err;
	struct pc_gil gil;
	int failed;

	pc_release(&gil, NULL);
	failed = kc_range_remove(((struct pc_range *)self)->range, &err);
	pc_acquire(&gil);
	if (failed)
		return pc_raise(state_of(self), &err, NULL);
	Py_RETURN_NONE;
}

static PyMethodDef range_methods[] = {
	{ "remove", range_remove, METH_NOARGS, DOC_BusRange_remove },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef range_properties[] = {
	{ "address", get_address, NULL, DOC_BusRange_address, NULL },
	{ "size", get_size, NULL, DOC_BusRange_size, NULL },
	{ "space", get_space, NULL, DOC_BusRange_space, NULL },
	{ "removed", get_removed, NULL, DOC_BusRange_removed, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot range_slots[] = {
	{ Py_tp_doc, (void *)DOC_BusRange },
	{ Py_tp_dealloc, range_dealloc },
	{ Py_tp_traverse, range_traverse },
	{ Py_tp_richcompare, range_compare },
	{ Py_tp_hash, range_hash },
	{ Py_tp_repr, range_repr },
	{ Py_tp_methods, range_methods },
	{ Py_tp_getset, range_properties },
	{ 0, NULL },
};

static PyType_Spec range_spec = {
	.name = "kvmcpu._kvm.BusRange",
	.basicsize = sizeof(struct pc_range),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
		 Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = range_slots,
};

int pc_range_init(PyObject *module, struct pc_state *state)
{
	state->BusRange = pc_add_type(module, &range_spec, NULL);
	/* Not a name of the module: nobody but the VM sees one. */
	state->Device = (PyTypeObject *)PyType_FromModuleAndSpec(module, &device_spec, NULL);
	return state->BusRange && state->Device ? 0 : -1;
}
