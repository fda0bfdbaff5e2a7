/* SPDX-License-Identifier: MIT */
/* VM's methods that are not in vm.c, where its tables are. */
#ifndef PC_VM_PARTS_H
#define PC_VM_PARTS_H

#include "module.h"

static inline struct pc_state *pc_vm_state(PyObject *self)
{
	return pc_state_of_type(Py_TYPE(self));
}

static inline struct kc_vm *pc_vm_core(PyObject *self)
{
	return ((struct pc_vm *)self)->vm;
}

/* Raise what the core says. */
static inline PyObject *pc_vm_fail(PyObject *self, const struct kc_error *err)
{
	return pc_raise(pc_vm_state(self), err, NULL);
}

/* None, or the error if the call failed. */
static inline PyObject *pc_vm_done(PyObject *self, int failed, const struct kc_error *err)
{
	if (failed)
		return pc_vm_fail(self, err);
	Py_RETURN_NONE;
}

/* vm_irq.c */
PyObject *pc_vm_create_irqchip(PyObject *self, PyObject *unused);
PyObject *pc_vm_create_pit(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *pc_vm_irq_line(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pc_vm_signal_msi(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pc_vm_set_gsi_routing(PyObject *self, PyObject *arg);
PyObject *pc_vm_irqfd(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *pc_vm_remove_irqfd(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pc_vm_ioeventfd(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *pc_vm_remove_ioeventfd(PyObject *self, PyObject *args, PyObject *kwargs);

#endif
