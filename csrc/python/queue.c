// SPDX-License-Identifier: MIT
#include "module.h"

#include <limits.h>
#include <stddef.h>

/*
 * An event knows its queue weakly; the queue owns a reference to what is scheduled. The collector is shown that
 * reference by the one EventQueue object whose end is the queue's end, if there is one (see accounted()).
 */
struct pc_event {
	PyObject_HEAD
	struct kc_event event;
	struct kc_queue *queue; /* weak */
	PyObject *callback; /* NULL once the collector cleared it */
};

static struct pc_state *state_of(PyObject *self)
{
	return pc_state_of_type(Py_TYPE(self));
}

/* ---- what the core calls ---- */

static int call(void *opaque, struct kc_error *err)
{
	struct pc_event *self = opaque;
	struct pc_callback callback = { .keep_error = false };
	PyObject *callable, *result = NULL;
	int failed = 0;

	pc_enter_python(&callback);
	callable = Py_XNewRef(self->callback);
	if (callable) {
		result = PyObject_CallNoArgs(callable);
		if (!result)
			failed = pc_callback_failed(err);
		Py_XDECREF(result);
		Py_DECREF(callable);
	}
	pc_leave_python(&callback);
	return failed;
}

static void get(void *opaque)
{
	struct pc_callback callback = { .keep_error = true };

	pc_enter_python(&callback);
	Py_INCREF((PyObject *)opaque);
	pc_leave_python(&callback);
}

static void put(void *opaque)
{
	struct pc_callback callback = { .keep_error = true };

	pc_enter_python(&callback);
	Py_DECREF((PyObject *)opaque);
	pc_leave_python(&callback);
}

/* ---- when: an absolute tick or a delay ---- */

static int schedule(PyObject *self, struct kc_queue *queue, struct pc_event *event, PyObject *when,
		    PyObject *delay)
{
	bool after = when == Py_None;
	struct kc_error err;
	uint64_t ticks;
	int failed;

	if (after == (delay == Py_None)) {
		PyErr_SetString(PyExc_TypeError, "give one of when and delay");
		return -1;
	}
	if (pc_ticks(after ? delay : when, queue->tick_frequency, &ticks))
		return -1;
	failed = after ? kc_queue_schedule_after(queue, &event->event, ticks, &err)
		       : kc_queue_schedule(queue, &event->event, ticks, &err);
	if (failed)
		pc_raise(state_of(self), &err, NULL);
	return failed;
}

/* ---- Event ---- */

static void event_dealloc(PyObject *self)
{
	struct pc_event *event = (struct pc_event *)self;
	PyTypeObject *type = Py_TYPE(self);

	/* It is in no queue: that would own a reference. */
	PyObject_GC_UnTrack(self);
	Py_CLEAR(event->callback);
	kc_queue_put_weak(event->queue);
	type->tp_free(self);
	Py_DECREF(type);
}

static int event_traverse(PyObject *self, visitproc visit, void *arg)
{
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(((struct pc_event *)self)->callback);
	return 0;
}

static int event_clear(PyObject *self)
{
	struct pc_event *event = (struct pc_event *)self;

	kc_queue_cancel(event->queue, &event->event);
	Py_CLEAR(event->callback);
	return 0;
}

/* Whether it is scheduled, and when it is due. */
static bool event_state(PyObject *self, uint64_t *when)
{
	struct pc_event *event = (struct pc_event *)self;
	kc_hold(&event->queue->lock);

	*when = event->event.when;
	return event->event.index != 0;
}

static PyObject *event_repr(PyObject *self)
{
	uint64_t when;
	bool scheduled = event_state(self, &when);

	return PyUnicode_FromFormat("<Event %s tick %llu: %R>", scheduled ? "at" : "over, was at",
				    (unsigned long long)when, ((struct pc_event *)self)->callback);
}

static PyObject *get_when(PyObject *self, void *unused)
{
	uint64_t when;

	event_state(self, &when);
	return PyLong_FromUnsignedLongLong(when);
}

static PyObject *get_priority(PyObject *self, void *unused)
{
	return PyLong_FromLong(((struct pc_event *)self)->event.priority);
}

static PyObject *get_scheduled(PyObject *self, void *unused)
{
	uint64_t when;

	return PyBool_FromLong(event_state(self, &when));
}

static PyObject *cancel(PyObject *self, PyObject *unused)
{
	struct pc_event *event = (struct pc_event *)self;

	return PyBool_FromLong(kc_queue_cancel(event->queue, &event->event));
}

static PyObject *reschedule(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "when", "delay", NULL };
	struct pc_event *event = (struct pc_event *)self;
	PyObject *when = Py_None, *delay = Py_None;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O$O:reschedule", names, &when, &delay) ||
	    schedule(self, event->queue, event, when, delay))
		return NULL;
	Py_RETURN_NONE;
}

static PyMethodDef event_methods[] = {
	{ "cancel", cancel, METH_NOARGS, DOC_Event_cancel },
	{ "reschedule", (PyCFunction)(void (*)(void))reschedule, METH_VARARGS | METH_KEYWORDS,
	  DOC_Event_reschedule },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef event_properties[] = {
	{ "when", get_when, NULL, DOC_Event_when, NULL },
	{ "priority", get_priority, NULL, DOC_Event_priority, NULL },
	{ "scheduled", get_scheduled, NULL, DOC_Event_scheduled, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot event_slots[] = {
	{ Py_tp_doc, (void *)DOC_Event },   { Py_tp_dealloc, event_dealloc },
	{ Py_tp_traverse, event_traverse }, { Py_tp_clear, event_clear },
	{ Py_tp_repr, event_repr },	    { Py_tp_methods, event_methods },
	{ Py_tp_getset, event_properties }, { 0, NULL },
};

static PyType_Spec event_spec = {
	.name = "kvmcpu._kvm.Event",
	.basicsize = sizeof(struct pc_event),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
		 Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = event_slots,
};

/* ---- EventQueue ---- */

static struct kc_queue *queue_of(PyObject *self)
{
	struct kc_queue *queue = ((struct pc_queue *)self)->queue;

	if (!queue)
		PyErr_SetString(PyExc_RuntimeError, "EventQueue.__init__() was not called");
	return queue;
}

PyObject *pc_queue_new(struct pc_state *state, struct kc_queue *queue)
{
	struct pc_queue *self =
		(struct pc_queue *)state->EventQueue->tp_alloc(state->EventQueue, 0);

	if (self)
		self->queue = kc_queue_get(queue);
	return (PyObject *)self;
}

static int queue_init(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "tick_frequency", NULL };
	struct pc_queue *object = (struct pc_queue *)self;
	uint64_t tick_frequency = 1000000000000;
	PyObject *frequency_arg = NULL;
	struct kc_error err;

	if (object->queue) {
		PyErr_SetString(PyExc_RuntimeError, "the EventQueue is initialized already");
		return -1;
	}
	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$O:EventQueue", names, &frequency_arg) ||
	    (frequency_arg && pc_u64(frequency_arg, "tick_frequency", &tick_frequency)))
		return -1;
	object->queue = kc_queue_create(tick_frequency, &err);
	if (!object->queue)
		pc_raise(state_of(self), &err, NULL);
	return object->queue ? 0 : -1;
}

static void queue_dealloc(PyObject *self)
{
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	kc_queue_put(((struct pc_queue *)self)->queue);
	type->tp_free(self);
	Py_DECREF(type);
}

/*
 * Whether the queue ends with this object, so that its events are garbage when this object is: it is the only
 * user, or the others are the VM that holds this object and that VM's vCPUs, whose objects hold the VM.
 */
static bool accounted(struct pc_queue *self)
{
	int users = 1;

	if (self->vm) {
		users++;
		for (size_t i = 0; i < self->queue->vcpu_count; i++)
			users += self->queue->vcpus[i]->vm == self->vm->vm;
	}
	return atomic_load(&self->queue->refs) == users;
}

static int queue_traverse(PyObject *self, visitproc visit, void *arg)
{
	struct kc_queue *queue = ((struct pc_queue *)self)->queue;

	Py_VISIT(Py_TYPE(self));
	if (!queue)
		return 0;
	kc_hold(&queue->lock);
	for (size_t i = 0; i < queue->count && accounted((struct pc_queue *)self); i++)
		if (queue->heap[i]->call == call)
			Py_VISIT((PyObject *)queue->heap[i]->opaque);
	return 0;
}

static PyObject *queue_compare(PyObject *a, PyObject *b, int op)
{
	bool same;

	if ((op != Py_EQ && op != Py_NE) || Py_TYPE(a) != Py_TYPE(b))
		Py_RETURN_NOTIMPLEMENTED;
	same = a == b || (((struct pc_queue *)a)->queue &&
			  ((struct pc_queue *)a)->queue == ((struct pc_queue *)b)->queue);
	return PyBool_FromLong(same == (op == Py_EQ));
}

static Py_hash_t queue_hash(PyObject *self)
{
	void *queue = ((struct pc_queue *)self)->queue;

	return _Py_HashPointer(queue ? queue : (void *)self);
}

static PyObject *queue_repr(PyObject *self)
{
	struct kc_queue *queue = ((struct pc_queue *)self)->queue;
	uint64_t next = queue ? kc_queue_next(queue) : KC_NEVER;

	if (!queue)
		return PyUnicode_FromString("<EventQueue, not initialized>");
	if (next == KC_NEVER)
		return PyUnicode_FromFormat("<EventQueue at tick %llu, empty>",
					    (unsigned long long)kc_queue_now(queue));
	return PyUnicode_FromFormat("<EventQueue at tick %llu, next at %llu>",
				    (unsigned long long)kc_queue_now(queue),
				    (unsigned long long)next);
}

static PyObject *get_now(PyObject *self, void *unused)
{
	struct kc_queue *queue = queue_of(self);

	return queue ? PyLong_FromUnsignedLongLong(kc_queue_now(queue)) : NULL;
}

static PyObject *get_tick_frequency(PyObject *self, void *unused)
{
	struct kc_queue *queue = queue_of(self);

	return queue ? PyLong_FromUnsignedLongLong(queue->tick_frequency) : NULL;
}

static PyObject *get_next_tick(PyObject *self, void *unused)
{
	struct kc_queue *queue = queue_of(self);
	uint64_t next;

	if (!queue)
		return NULL;
	next = kc_queue_next(queue);
	return next == KC_NEVER ? Py_NewRef(Py_None) : PyLong_FromUnsignedLongLong(next);
}

static Py_ssize_t queue_length(PyObject *self)
{
	struct kc_queue *queue = queue_of(self);

	if (!queue)
		return -1;
	kc_hold(&queue->lock);
	return (Py_ssize_t)queue->count;
}

static PyObject *queue_schedule(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *names[] = { "callback", "when", "delay", "priority", NULL };
	PyObject *callback, *when = Py_None, *delay = Py_None;
	struct kc_queue *queue = queue_of(self);
	struct pc_state *state = state_of(self);
	struct pc_event *event;
	int priority = 0;

	if (!queue || !PyArg_ParseTupleAndKeywords(args, kwargs, "O|O$Oi:schedule", names,
						   &callback, &when, &delay, &priority))
		return NULL;
	if (!PyCallable_Check(callback)) {
		PyErr_Format(PyExc_TypeError, "an event needs a callable, not %.100s",
			     Py_TYPE(callback)->tp_name);
		return NULL;
	}
	event = (struct pc_event *)state->Event->tp_alloc(state->Event, 0);
	if (!event)
		return NULL;
	event->event.call = call;
	event->event.get = get;
	event->event.put = put;
	event->event.opaque = event;
	event->event.priority = priority;
	event->queue = kc_queue_get_weak(queue);
	event->callback = Py_NewRef(callback);
	if (schedule(self, queue, event, when, delay))
		Py_CLEAR(event);
	return (PyObject *)event;
}

static PyObject *service(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	struct kc_queue *queue = queue_of(self);
	struct kc_error err;
	uint64_t until;
	size_t called;

	if (!queue)
		return NULL;
	if (nargs > 1) {
		PyErr_Format(PyExc_TypeError, "service() takes at most 1 argument, not %zd", nargs);
		return NULL;
	}
	until = kc_queue_now(queue);
	if (nargs && args[0] != Py_None && pc_ticks(args[0], queue->tick_frequency, &until))
		return NULL;
	if (kc_queue_service(queue, until, &called, &err))
		return pc_raise(state_of(self), &err, NULL);
	return PyLong_FromSize_t(called);
}

static PyMethodDef queue_methods[] = {
	{ "schedule", (PyCFunction)(void (*)(void))queue_schedule, METH_VARARGS | METH_KEYWORDS,
	  DOC_EventQueue_schedule },
	{ "service", (PyCFunction)(void (*)(void))service, METH_FASTCALL, DOC_EventQueue_service },
	{ NULL, NULL, 0, NULL },
};

static PyGetSetDef queue_properties[] = {
	{ "now", get_now, NULL, DOC_EventQueue_now, NULL },
	{ "tick_frequency", get_tick_frequency, NULL, DOC_EventQueue_tick_frequency, NULL },
	{ "next_tick", get_next_tick, NULL, DOC_EventQueue_next_tick, NULL },
	{ NULL, NULL, NULL, NULL, NULL },
};

static PyType_Slot queue_slots[] = {
	{ Py_tp_doc, (void *)DOC_EventQueue },
	{ Py_tp_new, PyType_GenericNew },
	{ Py_tp_init, queue_init },
	{ Py_tp_dealloc, queue_dealloc },
	{ Py_tp_traverse, queue_traverse },
	{ Py_tp_richcompare, queue_compare },
	{ Py_tp_hash, queue_hash },
	{ Py_tp_repr, queue_repr },
	{ Py_tp_methods, queue_methods },
	{ Py_tp_getset, queue_properties },
	{ Py_mp_length, queue_length },
	{ 0, NULL },
};

static PyType_Spec queue_spec = {
	.name = "kvmcpu._kvm.EventQueue",
	.basicsize = sizeof(struct pc_queue),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = queue_slots,
};

int pc_queue_init(PyObject *module, struct pc_state *state)
{
	state->EventQueue = pc_add_type(module, &queue_spec, NULL);
	state->Event = pc_add_type(module, &event_spec, NULL);
	return state->EventQueue && state->Event ? 0 : -1;
}
