/* SPDX-License-Identifier: MIT */
/*
 * What the files of the binding share: the module's state, the objects, and the way between the core and Python.
 *
 * Ownership. A Vcpu, Memory, BusRange holds its VM object; a VM object holds no other wrapper, only the devices'
 * callables (so that the garbage collector sees them). Memory, BusRange and EventQueue are thin handles on
 * counted core objects: two handles on the same object compare equal.
 *
 * The interpreter lock. pc_release() lets go of it around a call into the core that may run a guest or wait;
 * callbacks out of the core take it for their length with pc_enter_python(). Whoever waits for a lock of the
 * core lets go of the interpreter lock first.
 */
#ifndef PC_MODULE_H
#define PC_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "bus.h"
#include "cleanup.h"
#include "docs.h" /* made from kvmcpu/_kvm.pyi at build time */
#include "errors.h"
#include "fields.h"
#include "kvm.h"
#include "memory.h"
#include "queue.h"
#include "sink.h"
#include "stats.h"
#include "trace.h"
#include "vcpu.h"
#include "vm.h"

/* Exceptions: C name, Python name, base (C expression in errors.c) */
enum pc_error {
	PC_KvmError,
	PC_KvmNotFoundError,
	PC_KvmPermissionError,
	PC_NotKvmError,
	PC_KvmVersionError,
	PC_UnsupportedError,
	PC_VcpuBusy,
	PC_NotStartedError,
	PC_ClosedError,
	PC_ForkError,
	PC_StateError,
	PC_UnmappedError,
	PC_GuestError,
	PC_UnknownExitError,
	PC_ExceptionExitError,
	PC_FailEntryError,
	PC_InternalError,
	PC_ShutdownError,
	PC_UnhandledExitError,
	PC_UnassignedAccessError,
	PC_ERROR_COUNT
};

#define PC_REGISTER_TYPES_MAX 16
#define PC_EXIT_TYPES_MAX 24

struct pc_state {
	PyTypeObject *Kvm, *VM, *Memory, *BusRange, *ByteSink, *EventQueue, *Event, *Stats, *Vcpu,
		*Msrs, *Device, *Exit, *ExitRecord, *RegisterFile;
	PyTypeObject *register_types[PC_REGISTER_TYPES_MAX]; /* by registers.c */
	PyTypeObject *exit_types[PC_EXIT_TYPES_MAX]; /* by exit.c */
	PyObject *errors[PC_ERROR_COUNT];
	struct kc_trace *trace; /* lives as long as any VM: never freed once a VM was made from it */
	bool trace_used; /* by a VM */
	PyObject *trace_sink; /* callable or NULL */
};

extern struct PyModuleDef pc_module;

static inline struct pc_state *pc_state_of(PyObject *module)
{
	return PyModule_GetState(module);
}

/* From an object of one of our types; NULL without an exception cannot happen for those. */
struct pc_state *pc_state_of_type(PyTypeObject *type);

/* Each file adds its types (and functions) to the module: 0, or -1 with an exception. */
int pc_errors_init(PyObject *module, struct pc_state *state);
int pc_units_init(PyObject *module);
int pc_trace_init(PyObject *module, struct pc_state *state);
int pc_kvm_init(PyObject *module, struct pc_state *state);
int pc_vm_init(PyObject *module, struct pc_state *state);
int pc_memory_init(PyObject *module, struct pc_state *state);
int pc_range_init(PyObject *module, struct pc_state *state);
int pc_sink_init(PyObject *module, struct pc_state *state);
int pc_queue_init(PyObject *module, struct pc_state *state);
int pc_stats_init(PyObject *module, struct pc_state *state);
int pc_exit_init(PyObject *module, struct pc_state *state);
int pc_registers_init(PyObject *module, struct pc_state *state);
int pc_msrs_init(PyObject *module, struct pc_state *state);
int pc_vcpu_init(PyObject *module, struct pc_state *state);
/* module.c: make a heap type from a spec and add it to the module under its name. */
PyTypeObject *pc_add_type(PyObject *module, PyType_Spec *spec, PyTypeObject *base);

/* doc.c: the text of a type, or of its member (NULL: of the type itself) in the stub; NULL: none. */
const char *pc_doc(const char *type, const char *member);

/* ---- the interpreter lock (gil.c) ---- */

struct pc_gil {
	PyThreadState *saved; /* NULL while this thread holds the lock */
	struct kc_vcpu
		*vcpu; /* whose run this is; its signals are opened for callbacks. May be NULL */
	struct pc_gil *outer;
};
/* Let go of the interpreter lock, and take it back. vcpu: the one that the call will run, or NULL. */
void pc_release(struct pc_gil *gil, struct kc_vcpu *vcpu);
void pc_acquire(struct pc_gil *gil);

/*
 * In a callback out of the core: take the interpreter lock if this thread has let go of it, and give it back
 * as it was. An exception that is set at pc_leave_python stays set in the thread. A callback that can come
 * while one is set already (a release, a trace line) sets .keep_error: what was set is put aside and back.
 */
struct pc_callback {
	struct pc_gil *gil; /* NULL: the lock was held all along */
	bool keep_error;
	PyObject *type, *value, *traceback;
};
void pc_enter_python(struct pc_callback *callback);
void pc_leave_python(struct pc_callback *callback);
/* The end of a callback that failed: an exception is set; says so to the core. Returns -1. */
int pc_callback_failed(struct kc_error *err);

/* ---- errors (errors.c) ---- */

/*
 * Raise what the core says; returns NULL. vcpu: the object (borrowed) for KC_ERR_GUEST and KC_ERR_UNASSIGNED,
 * which become the exception of the vCPU's last exit with its registers; NULL elsewhere.
 */
PyObject *pc_raise(struct pc_state *state, const struct kc_error *err, PyObject *vcpu);

/* ---- quantities (units.c): converters from numbers or text; -1 with an exception ---- */

int pc_size(PyObject *value, uint64_t *size);
int pc_frequency(PyObject *value, double *hz);
int pc_ticks(PyObject *value, uint64_t tick_frequency, uint64_t *ticks);
/* An int from 0 to 2^64 - 1; name is for the message. A bool is refused. */
int pc_u64(PyObject *value, const char *name, uint64_t *number);
/* The same with an upper limit. */
int pc_uint(PyObject *value, const char *name, uint64_t limit, uint64_t *number);

/* ---- the objects ---- */

struct pc_kvm {
	PyObject_HEAD
	struct kc_kvm *kvm; /* NULL before __init__ */
};

struct pc_device;

struct pc_vm {
	PyObject_HEAD
	struct kc_vm *vm;
	struct pc_device *devices; /* list of what is on the bus: the core borrows them */
	PyObject *memory_mode_check, *address_hook; /* NULL: none */
	PyObject *queue; /* its EventQueue, made when first asked for: NULL */
	struct pc_vcpu **vcpus; /* borrowed: those that live */
	size_t vcpu_count;
	PyObject *weakrefs;
};

struct pc_memory {
	PyObject_HEAD
	struct pc_vm *vm;
	struct kc_slot *slot;
};

struct pc_range {
	PyObject_HEAD
	struct pc_vm *vm;
	struct kc_range *range;
};

struct pc_sink {
	PyObject_HEAD
	struct kc_sink *sink;
};

struct pc_queue {
	PyObject_HEAD
	struct kc_queue *queue; /* NULL before __init__ */
	struct pc_vm *vm; /* borrowed: this is the VM's .queue; NULL: a handle like any other */
};

struct kc_cpuid_entry; /* arch/arch.h */

struct pc_vcpu {
	PyObject_HEAD
	struct pc_vm *vm;
	struct kc_vcpu *vcpu;
	PyObject *exit_handlers; /* dict: reason -> callable; NULL until one is set */
	PyObject *drained; /* callable for the drain in progress; NULL */
	PyObject *period; /* int: ticks of a cycle; NULL until it is asked for */
	struct kc_cpuid_entry *cpuid; /* the table to start with; NULL: none of the user's */
	size_t cpuid_count;
	PyObject *weakrefs;
};

/* Constructors of handles; each takes over no reference of the caller's. NULL with an exception. */
PyObject *pc_vm_new(struct pc_state *state, struct kc_kvm *kvm, unsigned long type,
		    uint64_t tick_frequency);
PyObject *pc_memory_new(struct pc_state *state, struct pc_vm *vm, struct kc_slot *slot);
PyObject *pc_range_new(struct pc_state *state, struct pc_vm *vm, struct kc_range *range);
PyObject *pc_queue_new(struct pc_state *state, struct kc_queue *queue);
PyObject *pc_stats_new(struct pc_state *state, struct pc_vm *vm,
		       struct pc_vcpu *vcpu); /* one is NULL */
PyObject *pc_msrs_new(struct pc_state *state, struct pc_vcpu *vcpu);
/* VM.create_vcpu(): the arguments as it got them. */
PyObject *pc_vcpu_new(struct pc_state *state, struct pc_vm *vm, PyObject *args, PyObject *kwargs);

/* VM.add_memory(), .map_io(), .map_mmio(): implemented beside their types, bound in vm.c. */
PyObject *pc_vm_add_memory(PyObject *vm, PyObject *args, PyObject *kwargs);
PyObject *pc_vm_map_io(PyObject *vm, PyObject *args, PyObject *kwargs);
PyObject *pc_vm_map_mmio(PyObject *vm, PyObject *args, PyObject *kwargs);
/* Show the devices on the VM's bus to the collector. */
int pc_devices_traverse(struct pc_vm *vm, visitproc visit, void *arg);
/* The object of a vCPU that lives; borrowed, NULL if there is none. */
struct pc_vcpu *pc_vm_vcpu(struct pc_vm *vm, const struct kc_vcpu *vcpu);

/* ---- registers.c: register files as live views and copies ---- */

/* A live view of the vCPU's register file number i of kc_arch_register_files. */
PyObject *pc_register_file_new(struct pc_state *state, struct pc_vcpu *vcpu, unsigned int i);
/* Set it from a RegisterFile of the same type or a mapping: 0, or -1 with an exception and nothing set. */
int pc_register_file_assign(struct pc_state *state, struct pc_vcpu *vcpu, unsigned int i,
			    PyObject *value);

/* ---- exit.c ---- */

/* The vCPU's last exit as an object of its reason's class; None before the first entry. */
PyObject *pc_exit_new(struct pc_state *state, struct pc_vcpu *vcpu);
/* The ring of last exits as a list of ExitRecord, the oldest first. */
PyObject *pc_last_exits(struct pc_state *state, struct pc_vcpu *vcpu);

/* ---- vcpu.c ---- */

/*
 * Claim the vCPU for a call and check that it is started, open and not forked away: 0, or -1 with an exception.
 * pc_vcpu_release ends the claim.
 */
int pc_vcpu_claim(struct pc_state *state, struct pc_vcpu *vcpu);
void pc_vcpu_release(struct pc_vcpu *vcpu);

#endif
