// SPDX-License-Identifier: MIT
/* Trace lines on their way to Python (vcpu.md V25). */
#include "module.h"

#include <string.h>

/*
 * The core calls this through the struct kc_trace that all VMs of the interpreter share. The state behind it
 * lives as long as the module, whose m_free disconnects it: see pc_module in module.c.
 */
static void emit(void *opaque, enum kc_trace_flag flag, uint64_t tick, const char *cpu,
		 const char *message)
{
	struct pc_state *state = opaque;
	struct pc_callback callback = { .keep_error = true };
	PyObject *sink, *result;

	pc_enter_python(&callback);
	sink = Py_XNewRef(state->trace_sink);
	if (sink) {
		result = PyObject_CallFunction(sink, "sKss", kc_trace_names[flag],
					       (unsigned long long)tick, cpu, message);
		if (result)
			Py_DECREF(result);
		else
			PyErr_WriteUnraisable(sink);
		Py_DECREF(sink);
	}
	pc_leave_python(&callback);
}

static PyObject *names(void)
{
	PyObject *tuple = PyTuple_New(KC_TRACE_COUNT);

	for (Py_ssize_t i = 0; tuple && i < KC_TRACE_COUNT; i++) {
		PyObject *name = PyUnicode_InternFromString(kc_trace_names[i]);

		if (!name)
			Py_CLEAR(tuple);
		else
			PyTuple_SET_ITEM(tuple, i, name);
	}
	return tuple;
}

static PyObject *debug_flags(PyObject *module, PyObject *unused)
{
	(void)module;
	(void)unused;
	return names();
}

static int add_flag(PyObject *name, uint32_t *mask)
{
	if (!PyUnicode_Check(name)) {
		PyErr_Format(PyExc_TypeError, "a debug flag is a str, not %.100s",
			     Py_TYPE(name)->tp_name);
		return -1;
	}
	for (unsigned int i = 0; i < KC_TRACE_COUNT; i++) {
		if (PyUnicode_CompareWithASCIIString(name, kc_trace_names[i]))
			continue;
		*mask |= 1u << i;
		return 0;
	}
	PyObject *known = names();

	if (known)
		PyErr_Format(PyExc_ValueError, "there is no debug flag %R; there are %R", name,
			     known);
	Py_XDECREF(known);
	return -1;
}

static PyObject *set_debug_flags(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
	struct pc_state *state = pc_state_of(module);
	uint32_t mask = 0;

	for (Py_ssize_t i = 0; i < nargs; i++)
		if (add_flag(args[i], &mask))
			return NULL;
	atomic_store(&state->trace->mask, mask);
	Py_RETURN_NONE;
}

static PyObject *set_trace_sink(PyObject *module, PyObject *sink)
{
	struct pc_state *state = pc_state_of(module);
	PyObject *old = state->trace_sink;

	if (sink != Py_None && !PyCallable_Check(sink)) {
		PyErr_Format(PyExc_TypeError, "a trace sink is a callable or None, not %.100s",
			     Py_TYPE(sink)->tp_name);
		return NULL;
	}
	state->trace_sink = sink == Py_None ? NULL : Py_NewRef(sink);
	Py_XDECREF(old);
	Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
	{ "debug_flags", debug_flags, METH_NOARGS, DOC_debug_flags },
	{ "set_debug_flags", (PyCFunction)(void (*)(void))set_debug_flags, METH_FASTCALL,
	  DOC_set_debug_flags },
	{ "set_trace_sink", set_trace_sink, METH_O, DOC_set_trace_sink },
	{ NULL, NULL, 0, NULL },
};

int pc_trace_init(PyObject *module, struct pc_state *state)
{
	state->trace = calloc(1, sizeof(*state->trace));
	if (!state->trace) {
		PyErr_NoMemory();
		return -1;
	}
	state->trace->emit = emit;
	state->trace->opaque = state;
	return PyModule_AddFunctions(module, functions);
}
