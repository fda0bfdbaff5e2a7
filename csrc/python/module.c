// SPDX-License-Identifier: MIT
/* The extension module kvmcpu._kvm: its state, and what it is put together from. */
#include "module.h"

struct pc_state *pc_state_of_type(PyTypeObject *type)
{
	return PyType_GetModuleState(type);
}

PyTypeObject *pc_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject *base)
{
	PyTypeObject *type =
		(PyTypeObject *)PyType_FromModuleAndSpec(module, spec, (PyObject *)base);

	if (type && PyModule_AddType(module, type))
		Py_CLEAR(type);
	return type;
}

/* All references that the state holds, for the collector. */
#define FOR_EACH_REFERENCE(state, DO)                                                              \
	do {                                                                                       \
		DO((state)->Kvm);                                                                  \
		DO((state)->VM);                                                                   \
		DO((state)->Memory);                                                               \
		DO((state)->BusRange);                                                             \
		DO((state)->ByteSink);                                                             \
		DO((state)->EventQueue);                                                           \
		DO((state)->Event);                                                                \
		DO((state)->Stats);                                                                \
		DO((state)->Vcpu);                                                                 \
		DO((state)->Msrs);                                                                 \
		DO((state)->Device);                                                               \
		DO((state)->Exit);                                                                 \
		DO((state)->ExitRecord);                                                           \
		DO((state)->RegisterFile);                                                         \
		for (int i = 0; i < PC_REGISTER_TYPES_MAX; i++)                                    \
			DO((state)->register_types[i]);                                            \
		for (int i = 0; i < PC_EXIT_TYPES_MAX; i++)                                        \
			DO((state)->exit_types[i]);                                                \
		for (int i = 0; i < PC_ERROR_COUNT; i++)                                           \
			DO((state)->errors[i]);                                                    \
		DO((state)->trace_sink);                                                           \
	} while (0)

static int traverse(PyObject *module, visitproc visit, void *arg)
{
	struct pc_state *state = pc_state_of(module);

	FOR_EACH_REFERENCE(state, Py_VISIT);
	return 0;
}

static int clear(PyObject *module)
{
	struct pc_state *state = pc_state_of(module);

	FOR_EACH_REFERENCE(state, Py_CLEAR);
	return 0;
}

static void free_state(void *module)
{
	struct pc_state *state = pc_state_of(module);

	clear(module);
	if (!state->trace)
		return;
	/* At the end of an interpreter a VM may outlive its module: it must not trace any more. */
	atomic_store(&state->trace->mask, 0);
	state->trace->opaque = NULL;
	if (!state->trace_used)
		free(state->trace);
	state->trace = NULL;
}

static int exec(PyObject *module)
{
	struct pc_state *state = pc_state_of(module);

	if (pc_errors_init(module, state) || pc_units_init(module) ||
	    pc_trace_init(module, state) || pc_kvm_init(module, state) ||
	    pc_vm_init(module, state) || pc_memory_init(module, state) ||
	    pc_range_init(module, state) || pc_sink_init(module, state) ||
	    pc_queue_init(module, state) || pc_stats_init(module, state) ||
	    pc_exit_init(module, state) || pc_registers_init(module, state) ||
	    pc_msrs_init(module, state) || pc_vcpu_init(module, state))
		return -1;
	return 0;
}

static PyModuleDef_Slot slots[] = {
	{ Py_mod_exec, exec },
#ifdef Py_mod_multiple_interpreters /* 3.12 */
	{ Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED },
#endif
#ifdef Py_mod_gil /* 3.13: objects rely on the interpreter lock, a free-threaded build takes it back */
	{ Py_mod_gil, Py_MOD_GIL_USED },
#endif
	{ 0, NULL },
};

struct PyModuleDef pc_module = {
	PyModuleDef_HEAD_INIT, .m_name = "kvmcpu._kvm",
	.m_doc = DOC__kvm,     .m_size = sizeof(struct pc_state),
	.m_slots = slots,      .m_traverse = traverse,
	.m_clear = clear,      .m_free = free_state,
};

PyMODINIT_FUNC PyInit__kvm(void)
{
	return PyModuleDef_Init(&pc_module);
}
