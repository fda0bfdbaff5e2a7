/* SPDX-License-Identifier: MIT */
/* The virtual machine: what its vCPUs share. */
#ifndef KC_VM_H
#define KC_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bus.h"
#include "errors.h"
#include "kvm.h"
#include "lock.h"
#include "memory.h"
#include "queue.h"
#include "stats.h"
#include "trace.h"

struct kc_vcpu;
struct kc_vcpu_config;

struct kc_vm_hooks {
	void *opaque;
	/* V6: 0, or -1 with the reason in *err. */
	int (*memory_mode)(void *opaque, struct kc_error *err);
	/* Before an MMIO access is dispatched: may change *address. */
	int (*redirect)(void *opaque, struct kc_vcpu *vcpu, uint64_t *address, uint32_t size,
			bool is_write, struct kc_error *err);
	atomic_bool has_memory_mode, has_redirect;
};

struct kc_vm {
	atomic_int refs;
	struct kc_kvm *kvm;
	int fd;
	unsigned int fork_generation;
	atomic_uint closed; /* set once; a word: riscv64 exchanges nothing smaller by itself */
	bool irqchip; /* the kernel's interrupt controller exists */
	uint64_t tick_frequency;
	struct kc_trace *trace; /* outlives the VM */
	struct kc_vm_hooks hooks;
	atomic_bool unassigned_ones; /* V16: read all ones, drop writes, count it */

	struct kc_lock device_lock; /* V24; guards the buses */
	struct kc_bus bus[2]; /* by enum kc_space */
	atomic_bool coalesces; /* there is or was a coalesced range: the ring may hold writes */

	pthread_rwlock_t memory_lock; /* guards the slots */
	struct kc_slot **slots; /* in the order of their addresses */
	size_t slot_count;
	uint32_t next_slot, max_slots;

	pthread_mutex_t lock; /* guards what follows */
	struct kc_vcpu **vcpus; /* in the order of their ids */
	size_t vcpu_count;
	unsigned int next_vcpu_id;
	unsigned int running; /* vCPUs that are in a run and not waiting */
	unsigned int users; /* calls in progress that need fd */
	unsigned int
		inst_tickets; /* vCPUs in a run that are in the middle of an instruction of the budget */
	unsigned int inst_stop_number; /* grows with each stop that is scheduled */
	pthread_cond_t changed; /* a vCPU woke, halted, or left a run */

	_Atomic uint64_t insts; /* the system's total (V9) */
	_Atomic uint64_t
		inst_budget; /* instructions left to the system's stop (V23); KC_NEVER: no stop; written under .lock */

	struct kc_queue *queue;
};

struct kc_vm *kc_vm_create(struct kc_kvm *kvm, unsigned long type, uint64_t tick_frequency,
			   struct kc_trace *trace, struct kc_error *err);
struct kc_vm *kc_vm_get(struct kc_vm *vm);
void kc_vm_put(struct kc_vm *vm);
/*
 * Stop the vCPUs, wait until their threads have left them, free what the kernel holds. On a thread that is
 * itself inside a run of one of them, that vCPU is freed when its run ends.
 */
void kc_vm_close(struct kc_vm *vm);
int kc_vm_check(struct kc_vm *vm, struct kc_error *err);
/* ioctl on the VM; name is for the error. */
int kc_vm_ioctl(struct kc_vm *vm, unsigned long request, const char *name, void *arg,
		struct kc_error *err);
/* A vCPU woke, halted, or was let go of: those that wait look again. */
void kc_vm_changed(struct kc_vm *vm);
void kc_vm_stop(struct kc_vm *vm);
int kc_vm_schedule_inst_stop(struct kc_vm *vm, uint64_t insts, struct kc_error *err);
/* A snapshot with references; freed by the caller. */
struct kc_vcpu **kc_vm_vcpus(struct kc_vm *vm, size_t *count, struct kc_error *err);

#endif
