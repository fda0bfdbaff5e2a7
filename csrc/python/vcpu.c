// SPDX-License-Identifier: MIT
/*
 * The type Vcpu: its life, its callbacks, its attributes. Running it is vcpu_run.c, what it holds vcpu_state.c,
 * handing that over serialize.c.
 */
#include "vcpu.h"

#include <math.h>
#include <string.h>

#include "vcpu_new.h"
#include "vcpu_parts.h"
#include <structmember.h> /* until Python 3.12 the members' kinds are there */

kc_exit_path int pc_vcpu_claim(struct pc_state *state, struct pc_vcpu *self)
{
	struct kc_error err;

	if (__builtin_expect(kc_vcpu_claim(self->vcpu, &err), 0)) {
		pc_raise(state, &err, NULL);
		return -1;
	}
	if (__builtin_expect(kc_vcpu_check(self->vcpu, &err), 0)) {
		kc_vcpu_release(self->vcpu);
		pc_raise(state, &err, NULL);
		return -1;
	}
	return 0;
}

void pc_vcpu_release(struct pc_vcpu *self)
{
	kc_vcpu_release(self->vcpu);
}

static struct kc_vcpu *core(PyObject *self)
{
	return pc_vcpu_of(self)->vcpu;
}

/* ---- what the core calls ---- */

static int host_signals(void *opaque, struct kc_error *err)
{
	struct pc_callback callback = { 0 };
	int result = 0;

	pc_enter_python(&callback);
	if (PyErr_CheckSignals())
		result = pc_callback_failed(err);
	pc_leave_python(&callback);
	return result;
}

static int call_exit_handler(PyObject *self, uint64_t *latency, struct kc_error *err)
{
	PyObject *reason = PyLong_FromUnsignedLong(core(self)->run->exit_reason);
	PyObject *handler = NULL, *exit = NULL, *result = NULL;
	int failed = 0;

	if (reason && pc_vcpu_of(self)->exit_handlers)
		handler = PyDict_GetItemWithError(pc_vcpu_of(self)->exit_handlers, reason);
	Py_XINCREF(handler);
	/* Without one and without an error: it was taken away between the exit and here. */
	if (handler)
		exit = pc_exit_new(pc_vcpu_state(self), pc_vcpu_of(self));
	if (exit)
		result = PyObject_CallFunctionObjArgs(handler, self, exit, NULL);
	if (result && result != Py_None)
		failed = pc_u64(result, "a handler's latency", latency);
	if (failed || PyErr_Occurred())
		failed = pc_callback_failed(err);
	Py_XDECREF(result);
	Py_XDECREF(exit);
	Py_XDECREF(handler);
	Py_XDECREF(reason);
	return failed;
}

static int on_exit_reason(void *opaque, uint64_t *latency, struct kc_error *err)
{
	struct pc_callback callback = { 0 };
	int result;

	pc_enter_python(&callback);
	result = call_exit_handler(opaque, latency, err);
	pc_leave_python(&callback);
	return result;
}

static int on_drained(void *opaque, struct kc_error *err)
{
	struct pc_callback callback = { 0 };
	struct pc_vcpu *self = opaque;
	PyObject *drained, *called;
	int result = 0;

	pc_enter_python(&callback);
	drained = self->drained;
	self->drained = NULL;
	if (drained) {
		called = PyObject_CallNoArgs(drained);
		if (!called)
			result = pc_callback_failed(err);
		Py_XDECREF(called);
		Py_DECREF(drained);
	}
	pc_leave_python(&callback);
	return result;
}

/* ---- construction and start (V4) ---- */

/* The VM object lists those that live. */
static int join(struct pc_vm *vm, struct pc_vcpu *self)
{
	struct pc_vcpu **grown =
		PyMem_Realloc(vm->vcpus, (vm->vcpu_count + 1) * sizeof(struct pc_vcpu *));

	if (!grown) {
		PyErr_NoMemory();
		return -1;
	}
	vm->vcpus = grown;
	grown[vm->vcpu_count++] = self;
	return 0;
}

static void leave(struct pc_vm *vm, struct pc_vcpu *self)
{
	for (size_t i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpus[i] == self) {
			vm->vcpus[i] = vm->vcpus[--vm->vcpu_count];
			return;
		}
	}
}

static int start(struct pc_vcpu *self)
{
	struct pc_state *state = pc_state_of_type(Py_TYPE(self));
	struct kc_error err;
	struct pc_gil gil;
	int failed;

	if (kc_vcpu_claim(self->vcpu, &err)) {
		pc_raise(state, &err, NULL);
		return -1;
	}
	pc_release(&gil, NULL);
	failed = kc_vcpu_start(self->vcpu, &err);
	pc_acquire(&gil);
	if (!failed && self->cpuid)
		failed = kc_arch_set_cpuid(self->vcpu, self->cpuid, self->cpuid_count, &err);
	if (failed)
		pc_raise(state, &err, (PyObject *)self);
	kc_vcpu_release(self->vcpu);
	return failed;
}

static struct pc_vcpu *make(struct pc_state *state, struct pc_vm *vm, int id,
			    const struct kc_vcpu_config *config)
{
	struct pc_vcpu *self = (struct pc_vcpu *)state->Vcpu->tp_alloc(state->Vcpu, 0);
	struct kc_error err;
	struct pc_gil gil;

	if (!self)
		return NULL;
	self->vm = (struct pc_vm *)Py_NewRef(vm);
	pc_release(&gil, NULL);
	self->vcpu = kc_vcpu_create(vm->vm, id, config, &err);
	pc_acquire(&gil);
	if (!self->vcpu) {
		pc_raise(state, &err, NULL);
		Py_DECREF(self);
		return NULL;
	}
	self->vcpu->hooks.opaque = self;
	self->vcpu->hooks.host_signals = host_signals;
	self->vcpu->hooks.exit = on_exit_reason;
	self->vcpu->hooks.drained = on_drained;
	if (join(vm, self)) {
		Py_DECREF(self);
		return NULL;
	}
	return self;
}

PyObject *pc_vcpu_new(struct pc_state *state, struct pc_vm *vm, PyObject *args, PyObject *kwargs)
{
	struct pc_vcpu_options options = { 0 };
	struct pc_vcpu *self = NULL;

	if (!pc_vcpu_options_parse(state, &options, args, kwargs))
		self = make(state, vm, options.id, &options.config);
	if (self) {
		self->cpuid = options.cpuid;
		self->cpuid_count = options.cpuid_count;
		options.cpuid = NULL;
		if (options.start && start(self))
			Py_CLEAR(self);
	}
	free(options.cpuid);
	return (PyObject *)self;
}

static int vcpu_traverse(PyObject *object, visitproc visit, void *arg)
{
	struct pc_vcpu *self = pc_vcpu_of(object);

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->vm);
	Py_VISIT(self->exit_handlers);
	Py_VISIT(self->drained);
	return 0;
}

static int vcpu_clear(PyObject *object)
{
	struct pc_vcpu *self = pc_vcpu_of(object);

	/* Not the VM: what is left of the cycle still needs it, and it clears its own part. */
	Py_CLEAR(self->exit_handlers);
	Py_CLEAR(self->period);
	Py_CLEAR(self->drained);
	return 0;
}

static void vcpu_dealloc(PyObject *object)
{
	struct pc_vcpu *self = pc_vcpu_of(object);
	PyTypeObject *type = Py_TYPE(self);
	struct pc_gil gil;

	PyObject_GC_UnTrack(self);
	if (self->weakrefs)
		PyObject_ClearWeakRefs(object);
	vcpu_clear(object);
	if (self->vcpu) {
		leave(self->vm, self);
		atomic_store(&self->vcpu->exit_mask, 0);
		self->vcpu->hooks.host_signals = NULL;
		self->vcpu->hooks.exit = NULL;
		self->vcpu->hooks.drained = NULL;
		pc_release(&gil, NULL);
		kc_vcpu_put(self->vcpu);
		pc_acquire(&gil);
	}
	free(self->cpuid);
	Py_XDECREF(self->vm);
	type->tp_free(self);
	Py_DECREF(type);
}

static PyObject *vcpu_start(PyObject *self, PyObject *ignored)
{
	return start(pc_vcpu_of(self)) ? NULL : Py_NewRef(Py_None);
}

static PyObject *vcpu_repr(PyObject *self)
{
	struct kc_vcpu *vcpu = core(self);

	return PyUnicode_FromFormat("<Vcpu %s %s>", vcpu->name,
				    atomic_load(&vcpu->vm->closed) ? "closed"
				    : !vcpu->started		   ? "not started"
								   : kc_status_name(vcpu->status));
}

/* ---- what it is ---- */

static PyObject *get_id(PyObject *self, void *ignored)
{
	return PyLong_FromUnsignedLong(core(self)->id);
}

static PyObject *get_name(PyObject *self, void *ignored)
{
	return PyUnicode_FromString(core(self)->name);
}

static PyObject *get_vm(PyObject *self, void *ignored)
{
	return Py_NewRef((PyObject *)pc_vcpu_of(self)->vm);
}

static PyObject *get_queue(PyObject *self, void *ignored)
{
	return pc_queue_new(pc_vcpu_state(self), core(self)->queue);
}

static PyObject *get_status(PyObject *self, void *ignored)
{
	return PyUnicode_FromString(kc_status_name(core(self)->status));
}

static PyObject *get_thread(PyObject *self, void *ignored)
{
	pid_t thread = atomic_load(&core(self)->kick.thread);

	return thread ? PyLong_FromLong(thread) : Py_NewRef(Py_None);
}

static PyObject *get_clock_period(PyObject *self, void *ignored)
{
	return PyLong_FromUnsignedLongLong(core(self)->period);
}

static PyObject *get_host_freq(PyObject *self, void *ignored)
{
	return PyFloat_FromDouble(core(self)->host_freq);
}

static PyObject *get_host_factor(PyObject *self, void *ignored)
{
	return PyFloat_FromDouble(core(self)->host_factor);
}

static PyObject *get_time_source(PyObject *self, void *ignored)
{
	switch (core(self)->time_source) {
	case KC_TIME_PERF:
		return PyUnicode_FromString("perf");
	case KC_TIME_THREAD:
		return PyUnicode_FromString("thread");
	default:
		return PyUnicode_FromString("tsc");
	}
}

static PyObject *get_insts_source(PyObject *self, void *ignored)
{
	if (core(self)->time_source == KC_TIME_PERF && core(self)->counters.hardware)
		return PyUnicode_FromString("perf");
	Py_RETURN_NONE;
}

static PyObject *get_counter_error(PyObject *self, void *ignored)
{
	const char *text = core(self)->counter_error;

	return *text ? PyUnicode_FromString(text) : Py_NewRef(Py_None);
}

static PyObject *get_timer_resolution(PyObject *self, void *ignored)
{
	double ticks = ceil((double)core(self)->timer.resolution_ns / core(self)->ns_per_tick);

	return PyLong_FromDouble(ticks);
}

static PyObject *get_stop_reason(PyObject *self, void *ignored)
{
	enum kc_stop reason = core(self)->stop_reason;

	if (reason == KC_STOP_NONE)
		Py_RETURN_NONE;
	return PyUnicode_FromString(kc_stop_name(reason));
}

static PyObject *get_exit(PyObject *self, void *ignored)
{
	return pc_exit_new(pc_vcpu_state(self), pc_vcpu_of(self));
}

static PyObject *get_stats(PyObject *self, void *ignored)
{
	return pc_stats_new(pc_vcpu_state(self), NULL, pc_vcpu_of(self));
}

static PyObject *get_draining(PyObject *self, void *ignored)
{
	return PyBool_FromLong(core(self)->draining ||
			       (atomic_load(&core(self)->requests) & KC_REQUEST_DRAIN));
}

static PyObject *get_drained(PyObject *self, void *ignored)
{
	return PyBool_FromLong(core(self)->drained);
}

static PyObject *get_switched_out(PyObject *self, void *ignored)
{
	return PyBool_FromLong(core(self)->switched_out);
}

static PyObject *get_closed(PyObject *self, void *ignored)
{
	return PyBool_FromLong(atomic_load(&core(self)->vm->closed));
}

/* ---- the type ---- */

#define FASTCALL(function) (PyCFunction)(void (*)(void))(function), METH_FASTCALL
#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

static PyMethodDef vcpu_methods[] = {
	{ "start", vcpu_start, METH_NOARGS, DOC_Vcpu_start },
	{ "run", FASTCALL(pc_vcpu_run), DOC_Vcpu_run },
	{ "enter", FASTCALL(pc_vcpu_enter), DOC_Vcpu_enter },
	{ "tick", pc_vcpu_tick, METH_NOARGS, DOC_Vcpu_tick },
	{ "step", FASTCALL(pc_vcpu_step), DOC_Vcpu_step },
	{ "kick", pc_vcpu_kick, METH_NOARGS, DOC_Vcpu_kick },
	{ "stop", pc_vcpu_stop, METH_NOARGS, DOC_Vcpu_stop },
	{ "wakeup", pc_vcpu_wakeup, METH_NOARGS, DOC_Vcpu_wakeup },
	{ "activate", pc_vcpu_activate, METH_NOARGS, DOC_Vcpu_activate },
	{ "suspend", pc_vcpu_suspend, METH_NOARGS, DOC_Vcpu_suspend },
	{ "last_exits", pc_vcpu_last_exits, METH_NOARGS, DOC_Vcpu_last_exits },
	{ "set_exit_handler", pc_vcpu_set_exit_handler, METH_VARARGS, DOC_Vcpu_set_exit_handler },
	{ "schedule_inst_stop", pc_vcpu_schedule_inst_stop, METH_O, DOC_Vcpu_schedule_inst_stop },
	{ "guest_debug", KEYWORDS(pc_vcpu_guest_debug), DOC_Vcpu_guest_debug },
	{ "interrupt", pc_vcpu_interrupt, METH_O, DOC_Vcpu_interrupt },
	{ "nmi", pc_vcpu_nmi, METH_NOARGS, DOC_Vcpu_nmi },
	{ "drain", FASTCALL(pc_vcpu_drain), DOC_Vcpu_drain },
	{ "resume", pc_vcpu_resume, METH_NOARGS, DOC_Vcpu_resume },
	{ "switch_out", pc_vcpu_switch_out, METH_NOARGS, DOC_Vcpu_switch_out },
	{ "take_over", pc_vcpu_take_over, METH_O, DOC_Vcpu_take_over },
	{ "serialize", pc_vcpu_serialize, METH_NOARGS, DOC_Vcpu_serialize },
	{ "unserialize", pc_vcpu_unserialize, METH_O, DOC_Vcpu_unserialize },
	{ "get_one_reg", pc_vcpu_get_one_reg, METH_O, DOC_Vcpu_get_one_reg },
	{ "set_one_reg", pc_vcpu_set_one_reg, METH_VARARGS, DOC_Vcpu_set_one_reg },
	{ "reg_list", pc_vcpu_reg_list, METH_NOARGS, DOC_Vcpu_reg_list },
	{ "format_one_reg", pc_vcpu_format_one_reg, METH_O, DOC_Vcpu_format_one_reg },
	{ "dump", pc_vcpu_dump, METH_NOARGS, DOC_Vcpu_dump },
	{ "translate", pc_vcpu_translate, METH_O, DOC_Vcpu_translate },
	{ "read_virtual", pc_vcpu_read_virtual, METH_VARARGS, DOC_Vcpu_read_virtual },
	{ "write_virtual", pc_vcpu_write_virtual, METH_VARARGS, DOC_Vcpu_write_virtual },
	{ NULL, NULL, 0, NULL },
};

#define READ(name) { #name, get_##name, NULL, DOC_Vcpu_##name, NULL },
#define STATE(name) { #name, pc_vcpu_get_##name, pc_vcpu_set_##name, DOC_Vcpu_##name, NULL },

static const PyGetSetDef fixed[] = {
	/* clang-format off */
	READ(id) READ(name) READ(vm) READ(queue) READ(status) READ(thread) READ(clock_period)
	READ(host_freq) READ(host_factor) READ(time_source) READ(insts_source) READ(counter_error)
	READ(timer_resolution) READ(stop_reason) READ(exit) READ(stats) READ(draining) READ(drained)
	READ(switched_out) READ(closed)
	{ "msrs", pc_vcpu_get_msrs, NULL, DOC_Vcpu_msrs, NULL },
#if defined(__x86_64__)
	STATE(xsave) STATE(mp_state) STATE(lapic) STATE(tsc_khz) STATE(cpuid)
#endif
	/* clang-format on */
};

/* With the register files of the tables; made once for all interpreters, and never changed. */
static PyGetSetDef vcpu_attributes[sizeof(fixed) / sizeof(fixed[0]) + PC_REGISTER_TYPES_MAX + 1];
static pthread_once_t attributes_once = PTHREAD_ONCE_INIT;

static void make_attributes(void)
{
	PyGetSetDef *next = vcpu_attributes + sizeof(fixed) / sizeof(fixed[0]);

	memcpy(vcpu_attributes, fixed, sizeof(fixed));
	for (unsigned int i = 0; i < kc_arch_register_file_count && i < PC_REGISTER_TYPES_MAX;
	     i++) {
		const struct kc_register_file *file = &kc_arch_register_files[i];

		*next++ = (PyGetSetDef){ file->attribute, pc_vcpu_get_file, pc_vcpu_set_file,
					 pc_doc("Vcpu", file->attribute), (void *)file };
	}
}

static PyMemberDef vcpu_members[] = {
	{ "__weaklistoffset__", T_PYSSIZET, offsetof(struct pc_vcpu, weakrefs), READONLY, NULL },
	{ NULL, 0, 0, 0, NULL },
};

static PyType_Slot vcpu_slots[] = {
	{ Py_tp_doc, (void *)DOC_Vcpu },
	{ Py_tp_dealloc, vcpu_dealloc },
	{ Py_tp_traverse, vcpu_traverse },
	{ Py_tp_clear, vcpu_clear },
	{ Py_tp_repr, vcpu_repr },
	{ Py_tp_methods, vcpu_methods },
	{ Py_tp_getset, vcpu_attributes },
	{ Py_tp_members, vcpu_members },
	{ 0, NULL },
};

static PyType_Spec vcpu_spec = {
	.name = "kvmcpu._kvm.Vcpu",
	.basicsize = sizeof(struct pc_vcpu),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = vcpu_slots,
};

int pc_vcpu_init(PyObject *module, struct pc_state *state)
{
	pthread_once(&attributes_once, make_attributes);
	state->Vcpu = pc_add_type(module, &vcpu_spec, NULL);
	return state->Vcpu ? 0 : -1;
}
