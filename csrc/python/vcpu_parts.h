/* SPDX-License-Identifier: MIT */
/* Vcpu's methods and attributes that are not in vcpu.c, where its tables are. */
#ifndef PC_VCPU_PARTS_H
#define PC_VCPU_PARTS_H

#include "arch/arch.h"
#include "module.h"

static inline struct pc_vcpu *pc_vcpu_of(PyObject *self)
{
	return (struct pc_vcpu *)self;
}

static inline struct pc_state *pc_vcpu_state(PyObject *self)
{
	return pc_state_of_type(Py_TYPE(self));
}

/* vcpu_run.c */
PyObject *pc_vcpu_run(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pc_vcpu_enter(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pc_vcpu_tick(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_step(PyObject *self, PyObject *const *args, Py_ssize_t nargs);
PyObject *pc_vcpu_kick(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_stop(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_wakeup(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_activate(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_suspend(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_last_exits(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_set_exit_handler(PyObject *object, PyObject *args);
PyObject *pc_vcpu_schedule_inst_stop(PyObject *self, PyObject *value);
PyObject *pc_vcpu_guest_debug(PyObject *self, PyObject *args, PyObject *kwargs);
PyObject *pc_vcpu_interrupt(PyObject *self, PyObject *value);
PyObject *pc_vcpu_nmi(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_drain(PyObject *object, PyObject *const *args, Py_ssize_t nargs);
PyObject *pc_vcpu_resume(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_switch_out(PyObject *self, PyObject *ignored);

/* vcpu_state.c */
PyObject *pc_vcpu_get_file(PyObject *self, void *register_file);
int pc_vcpu_set_file(PyObject *self, PyObject *value, void *register_file);
PyObject *pc_vcpu_get_msrs(PyObject *self, void *ignored);
PyObject *pc_vcpu_get_one_reg(PyObject *self, PyObject *id);
PyObject *pc_vcpu_set_one_reg(PyObject *self, PyObject *args);
PyObject *pc_vcpu_reg_list(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_format_one_reg(PyObject *self, PyObject *id);
PyObject *pc_vcpu_dump(PyObject *self, PyObject *ignored);
#if defined(__x86_64__)
PyObject *pc_vcpu_get_xsave(PyObject *self, void *ignored);
int pc_vcpu_set_xsave(PyObject *self, PyObject *value, void *ignored);
PyObject *pc_vcpu_get_lapic(PyObject *self, void *ignored);
int pc_vcpu_set_lapic(PyObject *self, PyObject *value, void *ignored);
PyObject *pc_vcpu_get_mp_state(PyObject *self, void *ignored);
int pc_vcpu_set_mp_state(PyObject *self, PyObject *value, void *ignored);
PyObject *pc_vcpu_get_tsc_khz(PyObject *self, void *ignored);
int pc_vcpu_set_tsc_khz(PyObject *self, PyObject *value, void *ignored);
PyObject *pc_vcpu_get_cpuid(PyObject *self, void *ignored);
int pc_vcpu_set_cpuid(PyObject *self, PyObject *value, void *ignored);
#endif
/* A CPUID table from a sequence of sequences of seven ints; freed by the caller. */
struct kc_cpuid_entry *pc_cpuid_from_python(PyObject *value, size_t *count);
PyObject *pc_cpuid_as_tuples(const struct kc_cpuid_entry *entries, size_t count);

/* virtual.c */
PyObject *pc_vcpu_translate(PyObject *self, PyObject *address);
PyObject *pc_vcpu_read_virtual(PyObject *self, PyObject *args);
PyObject *pc_vcpu_write_virtual(PyObject *self, PyObject *args);

/* serialize.c */
PyObject *pc_vcpu_serialize(PyObject *self, PyObject *ignored);
PyObject *pc_vcpu_unserialize(PyObject *self, PyObject *state);
PyObject *pc_vcpu_take_over(PyObject *self, PyObject *other);

#endif
