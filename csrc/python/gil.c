// SPDX-License-Identifier: MIT
#include "module.h"

#include "kick.h"

/*
 * The calls of this thread that have let go of the interpreter lock, the innermost first. By thread, not by
 * interpreter: each entry holds the thread state that was let go of, and with it the interpreter.
 */
static __thread struct pc_gil *current __attribute__((tls_model("initial-exec")));

kc_exit_path void pc_release(struct pc_gil *gil, struct kc_vcpu *vcpu)
{
	gil->vcpu = vcpu;
	gil->outer = current;
	gil->saved = PyEval_SaveThread();
	current = gil;
}

kc_exit_path void pc_acquire(struct pc_gil *gil)
{
	current = gil->outer;
	PyEval_RestoreThread(gil->saved);
	gil->saved = NULL;
}

kc_exit_path void pc_enter_python(struct pc_callback *callback)
{
	struct pc_gil *gil = current;

	callback->gil = NULL;
	if (gil && gil->saved) {
		/* Before waiting for the lock, which may take long: a Ctrl-C is not to wait as well. */
		if (gil->vcpu && !gil->vcpu->kick.open)
			kc_kick_open(gil->vcpu);
		PyEval_RestoreThread(gil->saved);
		gil->saved = NULL;
		callback->gil = gil;
	}
	if (callback->keep_error)
		PyErr_Fetch(&callback->type, &callback->value, &callback->traceback);
}

kc_exit_path void pc_leave_python(struct pc_callback *callback)
{
	if (callback->keep_error) {
		if (PyErr_Occurred())
			PyErr_WriteUnraisable(NULL);
		PyErr_Restore(callback->type, callback->value, callback->traceback);
	}
	if (callback->gil)
		callback->gil->saved = PyEval_SaveThread();
}

int pc_callback_failed(struct kc_error *err)
{
	if (!PyErr_Occurred())
		PyErr_SetString(PyExc_SystemError, "a callback failed without an exception");
	return kc_fail(err, KC_ERR_CALLBACK, "a Python callback raised an exception");
}
