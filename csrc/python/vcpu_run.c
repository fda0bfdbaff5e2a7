// SPDX-License-Identifier: MIT
/* Running a vCPU, and what other threads ask of it: kicks, stops, interrupts, drains. */
#include "kick.h"
#include "vcpu_parts.h"

static PyObject *fail(PyObject *self, const struct kc_error *err)
{
	return pc_raise(pc_vcpu_state(self), err, self);
}

kc_exit_path static int claim(PyObject *self)
{
	return pc_vcpu_claim(pc_vcpu_state(self), pc_vcpu_of(self));
}

kc_exit_path static void release(PyObject *self)
{
	kc_vcpu_release(pc_vcpu_of(self)->vcpu);
}

static struct kc_vcpu *core(PyObject *self)
{
	return pc_vcpu_of(self)->vcpu;
}

/* For calls from any thread: it is started and its VM is open. */
static int check_any_thread(PyObject *self)
{
	struct kc_error err;

	if (!kc_vcpu_check_any_thread(core(self), &err))
		return 0;
	fail(self, &err);
	return -1;
}

typedef int run_function(struct kc_vcpu *vcpu, uint64_t limit, uint64_t *passed,
			 struct kc_error *err);

kc_exit_path static int run_released(PyObject *self, run_function *function, uint64_t limit,
				     uint64_t *passed, struct kc_error *err)
{
	struct pc_gil gil;
	int failed;

	pc_release(&gil, core(self));
	failed = function(core(self), limit, passed, err);
	pc_acquire(&gil);
	return failed;
}

/* A call that may run the guest, without the interpreter lock. */
static PyObject *run(PyObject *self, run_function *function, uint64_t limit)
{
	PyObject *result;
	struct kc_error err;
	uint64_t passed = 0;
	int failed;

	if (claim(self))
		return NULL;
	failed = run_released(self, function, limit, &passed, &err);
	/* Still claimed: the error tells of registers. */
	result = failed ? fail(self, &err) : PyLong_FromUnsignedLongLong(passed);
	release(self);
	return result;
}

/* One that is over before the interpreter lock is let go of, where it can be. */
kc_exit_path static PyObject *half_entry(PyObject *object)
{
	struct pc_vcpu *self = pc_vcpu_of(object);
	PyObject *result = NULL;
	struct kc_error err;
	int failed;

	if (claim(object))
		return NULL;
	failed = kc_vcpu_half_entry(self->vcpu, &err);
	if (failed < 0)
		fail(object, &err);
	else if (!failed &&
		 (self->period || (self->period = PyLong_FromUnsignedLongLong(self->vcpu->period))))
		result = Py_NewRef(self->period);
	release(object);
	return failed > 0 ? run(object, kc_vcpu_enter, 0) : result;
}

/* The ticks that run() and enter() may be given. */
kc_exit_path static int limit_of(PyObject *self, const char *name, PyObject *const *args,
				 Py_ssize_t nargs, uint64_t *ticks)
{
	*ticks = KC_NEVER;
	if (nargs > 1) {
		PyErr_Format(PyExc_TypeError, "%s() takes at most 1 argument (%zd given)", name,
			     nargs);
		return -1;
	}
	if (!nargs || args[0] == Py_None)
		return 0;
	return pc_ticks(args[0], core(self)->tick_frequency, ticks);
}

PyObject *pc_vcpu_run(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	uint64_t ticks;

	if (limit_of(self, "run", args, nargs, &ticks))
		return NULL;
	return run(self, kc_vcpu_run, ticks);
}

kc_exit_path PyObject *pc_vcpu_enter(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	uint64_t ticks;

	if (limit_of(self, "enter", args, nargs, &ticks))
		return NULL;
	return ticks ? run(self, kc_vcpu_enter, ticks) : half_entry(self);
}

static int tick(struct kc_vcpu *vcpu, uint64_t ignored, uint64_t *delay, struct kc_error *err)
{
	return kc_vcpu_tick(vcpu, delay, err);
}

PyObject *pc_vcpu_tick(PyObject *self, PyObject *ignored)
{
	return run(self, tick, 0);
}

PyObject *pc_vcpu_step(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
	uint64_t n = 1;

	if (nargs > 1)
		return PyErr_Format(PyExc_TypeError, "step() takes at most 1 argument (%zd given)",
				    nargs);
	if (nargs && pc_uint(args[0], "the number of instructions", KC_NEVER - 1, &n))
		return NULL;
	return run(self, kc_vcpu_step, n);
}

PyObject *pc_vcpu_kick(PyObject *self, PyObject *ignored)
{
	return check_any_thread(self) ? NULL : PyBool_FromLong(kc_kick(core(self)));
}

PyObject *pc_vcpu_stop(PyObject *self, PyObject *ignored)
{
	return check_any_thread(self) ? NULL : PyBool_FromLong(kc_vcpu_stop(core(self)));
}

PyObject *pc_vcpu_wakeup(PyObject *self, PyObject *ignored)
{
	struct kc_vcpu *vcpu = core(self);
	struct kc_error busy;

	if (check_any_thread(self))
		return NULL;
	/* At rest there is nobody to look at a request: it would be seen at the next run only. */
	if (kc_vcpu_claim(vcpu, &busy)) {
		kc_vcpu_wakeup(vcpu);
	} else {
		if (atomic_load(&vcpu->kick.thread))
			kc_vcpu_wakeup(vcpu);
		else
			kc_vcpu_activate(vcpu);
		kc_vcpu_release(vcpu);
	}
	Py_RETURN_NONE;
}

PyObject *pc_vcpu_activate(PyObject *self, PyObject *ignored)
{
	if (claim(self))
		return NULL;
	kc_vcpu_activate(core(self));
	release(self);
	Py_RETURN_NONE;
}

PyObject *pc_vcpu_suspend(PyObject *self, PyObject *ignored)
{
	if (claim(self))
		return NULL;
	kc_vcpu_suspend(core(self));
	release(self);
	Py_RETURN_NONE;
}

PyObject *pc_vcpu_last_exits(PyObject *self, PyObject *ignored)
{
	return pc_last_exits(pc_vcpu_state(self), pc_vcpu_of(self));
}

PyObject *pc_vcpu_set_exit_handler(PyObject *object, PyObject *args)
{
	struct pc_vcpu *self = pc_vcpu_of(object);
	PyObject *reason, *handler, *key;
	uint64_t number;
	int failed;

	if (!PyArg_ParseTuple(args, "OO:set_exit_handler", &reason, &handler) ||
	    pc_uint(reason, "an exit reason", 63, &number))
		return NULL;
	if (handler != Py_None && !PyCallable_Check(handler))
		return PyErr_Format(PyExc_TypeError, "a handler is callable or None, not %.100s",
				    Py_TYPE(handler)->tp_name);
	if (!self->exit_handlers)
		self->exit_handlers = PyDict_New();
	key = PyLong_FromUnsignedLongLong(number);
	if (!self->exit_handlers || !key) {
		Py_XDECREF(key);
		return NULL;
	}
	if (handler == Py_None) {
		atomic_fetch_and(&self->vcpu->exit_mask, ~(1ULL << number));
		failed = PyDict_Contains(self->exit_handlers, key);
		if (failed > 0)
			failed = PyDict_DelItem(self->exit_handlers, key);
	} else {
		failed = PyDict_SetItem(self->exit_handlers, key, handler);
		if (!failed)
			atomic_fetch_or(&self->vcpu->exit_mask, 1ULL << number);
	}
	Py_DECREF(key);
	return failed ? NULL : Py_NewRef(Py_None);
}

PyObject *pc_vcpu_schedule_inst_stop(PyObject *self, PyObject *value)
{
	struct kc_error err;
	uint64_t insts;
	int failed;

	if (pc_u64(value, "insts", &insts) || claim(self))
		return NULL;
	failed = kc_vcpu_schedule_inst_stop(core(self), insts, &err);
	if (failed)
		fail(self, &err);
	release(self);
	return failed ? NULL : Py_NewRef(Py_None);
}

/* ---- debugging the guest ---- */

#if defined(__x86_64__)

static int set_breakpoints(struct kvm_guest_debug *debug, PyObject *addresses)
{
	PyObject *list = PySequence_Tuple(addresses);
	int failed = list ? 0 : -1;

	if (list && PyTuple_GET_SIZE(list) > 4) {
		PyErr_SetString(PyExc_ValueError, "the processor has 4 breakpoint registers");
		failed = -1;
	}
	for (Py_ssize_t i = 0; !failed && i < PyTuple_GET_SIZE(list); i++) {
		uint64_t address = 0;

		failed = pc_u64(PyTuple_GET_ITEM(list, i), "a breakpoint's address", &address);
		debug->arch.debugreg[i] = address;
		/* Its global enable bit; type and length 0 are for instructions (Intel SDM vol. 3, 18.2.4). */
		debug->arch.debugreg[7] |= 2ULL << (2 * i);
		debug->control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
	}
	Py_XDECREF(list);
	return failed;
}

#else

static int set_breakpoints(struct kvm_guest_debug *debug, PyObject *addresses)
{
	Py_ssize_t count = PyObject_Size(addresses);

	if (count > 0)
		PyErr_SetString(PyExc_NotImplementedError,
				"hardware breakpoints are there on x86-64 only");
	return count ? -1 : 0;
}

#endif

PyObject *pc_vcpu_guest_debug(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *keywords[] = { "singlestep", "breakpoints", "software", NULL };
	struct kvm_guest_debug debug = { 0 };
	PyObject *breakpoints = NULL;
	int singlestep = 0, software = 0, failed;
	struct kc_error err;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$pOp:guest_debug", keywords, &singlestep,
					 &breakpoints, &software) ||
	    (breakpoints && set_breakpoints(&debug, breakpoints)))
		return NULL;
	if (singlestep)
		debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
#ifdef KVM_GUESTDBG_USE_SW_BP
	if (software)
		debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
#endif
	if (claim(self))
		return NULL;
	failed = kc_vcpu_set_debug(core(self), &debug, &err);
	if (failed)
		fail(self, &err);
	release(self);
	return failed ? NULL : Py_NewRef(Py_None);
}

/* ---- interrupts ---- */

PyObject *pc_vcpu_interrupt(PyObject *self, PyObject *value)
{
	struct kc_error err;
	uint64_t vector;

	if (pc_uint(value, "an interrupt's vector", 255, &vector))
		return NULL;
	if (kc_vcpu_interrupt(core(self), (unsigned int)vector, &err))
		return fail(self, &err);
	Py_RETURN_NONE;
}

PyObject *pc_vcpu_nmi(PyObject *self, PyObject *ignored)
{
	struct kc_error err;

	if (kc_vcpu_nmi(core(self), &err))
		return fail(self, &err);
	Py_RETURN_NONE;
}

/* ---- drain, hand over ---- */

PyObject *pc_vcpu_drain(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
	struct pc_vcpu *self = pc_vcpu_of(object);
	PyObject *done = nargs && args[0] != Py_None ? args[0] : NULL;
	struct kc_error err;
	struct pc_gil gil;
	int result;

	if (nargs > 1)
		return PyErr_Format(PyExc_TypeError, "drain() takes at most 1 argument (%zd given)",
				    nargs);
	if (done && !PyCallable_Check(done))
		return PyErr_Format(PyExc_TypeError, "drain() needs a callable, not %.100s",
				    Py_TYPE(done)->tp_name);
	if (check_any_thread(object))
		return NULL;
	/* Before the request, whose end may come at once on another thread. */
	if (done)
		Py_XSETREF(self->drained, Py_NewRef(done));
	pc_release(&gil, NULL);
	result = kc_vcpu_drain(self->vcpu, &err);
	pc_acquire(&gil);
	if (result && done && self->drained == done)
		Py_CLEAR(self->drained);
	return result < 0 ? fail(object, &err) : PyBool_FromLong(result);
}

typedef int plain_function(struct kc_vcpu *vcpu, struct kc_error *err);

static PyObject *call(PyObject *self, plain_function *function)
{
	struct kc_error err;
	int failed;

	if (claim(self))
		return NULL;
	failed = function(core(self), &err);
	if (failed)
		fail(self, &err);
	release(self);
	return failed ? NULL : Py_NewRef(Py_None);
}

PyObject *pc_vcpu_resume(PyObject *self, PyObject *ignored)
{
	return call(self, kc_vcpu_resume);
}

PyObject *pc_vcpu_switch_out(PyObject *self, PyObject *ignored)
{
	return call(self, kc_vcpu_switch_out);
}
