/* SPDX-License-Identifier: MIT */
/* The virtual CPU: its parts, its states, its steps. vcpu.md's numbers stand where they are met. */
#ifndef KC_VCPU_H
#define KC_VCPU_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "compat.h"
#include "context.h"
#include "counters.h"
#include "errors.h"
#include "kick.h"
#include "lock.h"
#include "queue.h"
#include "stats.h"
#include "timer.h"
#include "trace.h"
#include "vm.h"

enum kc_status { KC_IDLE, KC_RUNNING, KC_SERVICE, KC_COMPLETION };

enum kc_stop {
	KC_STOP_NONE,
	KC_STOP_TICKS,
	KC_STOP_IDLE,
	KC_STOP_EXIT,
	KC_STOP_STOP,
	KC_STOP_DRAINED,
	KC_STOP_INSTS,
	KC_STOP_ERROR,
};

enum kc_time_source { KC_TIME_AUTO, KC_TIME_PERF, KC_TIME_THREAD, KC_TIME_TSC };

/* What is asked of a vCPU by any thread, looked at before each entry. */
enum kc_request {
	KC_REQUEST_STOP = 1 << 0,
	KC_REQUEST_DRAIN = 1 << 1,
	KC_REQUEST_INTERRUPT = 1 << 2,
	KC_REQUEST_NMI = 1 << 3,
	KC_REQUEST_WAKEUP = 1 << 4,
	KC_REQUEST_INSTS = 1 << 5, /* the system's instruction stop is reached */
};

/* The vCPU calls its user; each gets .opaque first. All may be NULL. */
struct kc_vcpu_hooks {
	void *opaque;
	/* Run the host program's own signal handlers; -1 ends the run. */
	int (*host_signals)(void *opaque, struct kc_error *err);
	/* An exit reason in the vCPU's exit_mask is serviced here. */
	int (*exit)(void *opaque, uint64_t *latency, struct kc_error *err);
	/* A drain that was not done at once is done now. */
	int (*drained)(void *opaque, struct kc_error *err);
};

struct kc_vcpu_config {
	const char *name; /* NULL: "cpu" and the id */
	struct kc_queue *queue; /* NULL: the VM's */
	double clock; /* Hz; 0: host_freq * host_factor */
	double host_freq; /* Hz; 0: the time source's */
	double host_factor; /* > 0 */
	enum kc_time_source time_source;
	bool has_perf_event;
	uint32_t perf_type;
	uint64_t perf_config;
	bool use_perf_overflow;
	bool cpuid_supported; /* give it the CPUID table that the host supports */
};

struct kc_vcpu {
	/* What it is */
	atomic_int refs;
	unsigned int id;
	char name[32];
	bool started, closed;
	bool cpuid_supported;
	uint32_t ring_capacity;

	/*
	 * What every exit touches, in as few cache lines as can be: a guest's exit leaves them cold. Not where in its
	 * page the run structure has its own: a load from there would wait for a store here.
	 */
	_Alignas(64) struct kc_vm *vm;
	struct kc_queue *queue;
	struct kvm_run *run; /* NULL before start */
	size_t run_size;
	int fd; /* -1 before start and after close */
	enum kc_status status;
	atomic_uint requests;
	bool active; /* the context: not halted, not suspended */
	bool exit_unhandled; /* the last exit is the user's to handle: the run returns */
	bool entered;
	bool plain; /* nothing is asked of its run but to serve accesses: what changes that clears it */
	uint64_t next_step; /* the tick at which the next step is due */
	uint64_t run_end; /* no entry goes beyond this tick; KC_NEVER */

	uint64_t clock_at; /* host clock at the last exit, if next to nothing was done since; 0 */
	_Atomic uint64_t entry_start; /* host clock at the start of the entry in progress; 0: none */
	uint64_t shut_at; /* host clock at which an entry ends for the host's signals (kick.h); 0: never */
	uint64_t ask_at; /* host clock at which the host's handlers are asked; UINT64_MAX: never */
	uint64_t tick_fraction, cycle_fraction; /* 0.64: of the entries so far */
	uint64_t period; /* ticks of a cycle (V1) */
	struct kc_exit_record *record; /* of the last exit */

	unsigned __int128 periods_per_tick; /* 64.64, rounded down */
	unsigned __int128 ticks_per_count; /* 64.64: ticks for one count of the time source (V2) */
	unsigned __int128 cycles_per_count; /* 64.64: guest cycles for one count */
	struct kvm_coalesced_mmio_ring *ring; /* NULL: the kernel has none */
	_Atomic uint64_t exit_mask; /* exit reasons below 64 that hooks.exit services, by bit */

	struct kc_context context;
	struct kc_stats stats;

	struct kc_vcpu_hooks hooks;

	/* Who works with it: a thread for the length of a call, or of a run. */
	_Atomic(void *) owner; /* kc_thread(); NULL: nobody */
	unsigned int owner_depth;
	struct kc_kick kick;
	struct kc_vcpu *outer; /* that the same thread runs further out */

	/* Its life */
	bool draining, drained, switched_out;
	atomic_bool waiting; /* in a run, Idle, for others to wake it */
	enum kc_stop stop_reason;
	uint64_t idle_since; /* tick */

	/* Time (V1, V2) */
	uint64_t tick_frequency;
	double host_freq, host_factor;
	double ns_per_tick; /* of the host, for arming the timer */
	double hostclock_per_ns;
	enum kc_time_source time_source;
	uint64_t attached_to; /* the thread that timer and counters follow: kc_kick.serial; 0: none */
	struct kc_timer timer;
	uint64_t armed_until; /* host clock at which the armed timer fires; 0: not armed */
	struct kc_counters counters;

	/* Counting instructions (V23) */
	_Atomic uint64_t insts; /* committed so far, as far as known */
	bool insts_known; /* every instruction so far was counted or stepped */
	bool insts_reached; /* an instruction stop */
	bool stepping; /* the last entry was a single step */
	bool half_first; /* an access is to be finished before the first step begins */
	bool step_open; /* an instruction was begun by a step and is not known to be done */
	bool has_ticket; /* one instruction of the system's budget is ours */
	bool stale_halt; /* KVM still has a halt to report that was stepped over */
	unsigned int ticket_stop; /* of which stop: kc_vm.inst_stop_number */
	uint64_t inst_stop; /* the count at which to stop; KC_NEVER */
	uint64_t steps_left; /* by kc_vcpu_step: single steps still wanted; KC_NEVER: not stepping */
	uint64_t entry_pc; /* where the last single step began */
	uint64_t step_pc; /* where it is */
	uint32_t debug_control; /* of struct kvm_guest_debug: what the user wants */
	bool loses_step; /* kc_arch_loses_step() */
	uint32_t told_debug; /* what KVM was told; UINT32_MAX: it is to be told anew */

	/* Interrupts to be delivered (V17), by any thread */
	_Atomic uint64_t interrupts[4];
	atomic_uint nmis;

	struct kc_exit_ring exits;
	/* What an exit touches ends here: all of it in one page (KC_VCPU_ALIGN). */
	char counter_error[384]; /* why the host counts nothing for us; empty if it does */
	struct kvm_guest_debug_arch debug_arch; /* the rest of what the user wants */
};

/* A guest's exit leaves the host's translations cold: each page that the way back touches costs a walk. */
#define KC_VCPU_ALIGN 4096
_Static_assert(offsetof(struct kc_vcpu, counter_error) <= KC_VCPU_ALIGN, "more than a page");

struct kc_vcpu *kc_vcpu_create(struct kc_vm *vm, int id, const struct kc_vcpu_config *config,
			       struct kc_error *err);
struct kc_vcpu *kc_vcpu_get(struct kc_vcpu *vcpu);
void kc_vcpu_put(struct kc_vcpu *vcpu);

/* The VM closes: frees what the kernel holds. The VM's lock is not held. */
void kc_vcpu_close(struct kc_vcpu *vcpu);

/*
 * Every call that needs the vCPU at rest stands between claim and release: KC_ERR_BUSY if another thread has it.
 * The same thread may claim it again (a handler inside a run). check: it is started, open, not forked away.
 */
int kc_vcpu_claim_soon(struct kc_vcpu *vcpu, struct kc_error *err);
static inline int kc_vcpu_claim(struct kc_vcpu *vcpu, struct kc_error *err)
{
	void *nobody = NULL, *self = kc_thread();

	if (atomic_load_explicit(&vcpu->owner, memory_order_relaxed) == self) {
		vcpu->owner_depth++;
		return 0;
	}
	/* A thread of the parent's that ran it at the fork is not there to let go of it. */
	if (kc_check_fork(vcpu->vm->fork_generation, err))
		return -1;
	if (__builtin_expect(!atomic_compare_exchange_strong(&vcpu->owner, &nobody, self), 0) &&
	    kc_vcpu_claim_soon(vcpu, err))
		return -1;
	vcpu->owner_depth = 1;
	return 0;
}

static inline void kc_vcpu_release(struct kc_vcpu *vcpu)
{
	if (--vcpu->owner_depth)
		return;
	/* A handler closed the VM under its own run. */
	if (__builtin_expect(atomic_load(&vcpu->vm->closed), 0) && vcpu->started)
		kc_vcpu_close(vcpu);
	atomic_store(&vcpu->owner, NULL);
	if (__builtin_expect(atomic_load(&vcpu->vm->closed), 0))
		kc_vm_changed(vcpu->vm);
}

int kc_vcpu_fail_check(struct kc_vcpu *vcpu, struct kc_error *err);
static inline int kc_vcpu_check(struct kc_vcpu *vcpu, struct kc_error *err)
{
	return __builtin_expect(vcpu->fd >= 0 && !atomic_load(&vcpu->vm->closed) &&
					vcpu->vm->fork_generation == kc_fork_generation(),
				1)
		       ? 0
		       : kc_vcpu_fail_check(vcpu, err);
}

/* Claimed by the caller: */
int kc_vcpu_start(struct kc_vcpu *vcpu, struct kc_error *err);
int kc_vcpu_run(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed, struct kc_error *err);
int kc_vcpu_enter(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed, struct kc_error *err);
/*
 * kc_vcpu_enter(vcpu, 0, ...) where that comes back at once, without a lock or a callback on the way; it took one
 * period. 1: there may be such, nothing was done.
 */
int kc_vcpu_half_entry(struct kc_vcpu *vcpu, struct kc_error *err);
int kc_vcpu_tick(struct kc_vcpu *vcpu, uint64_t *delay, struct kc_error *err);
int kc_vcpu_step(struct kc_vcpu *vcpu, uint64_t n, uint64_t *done, struct kc_error *err);
int kc_vcpu_set_debug(struct kc_vcpu *vcpu, const struct kvm_guest_debug *debug,
		      struct kc_error *err);
int kc_vcpu_schedule_inst_stop(struct kc_vcpu *vcpu, uint64_t insts, struct kc_error *err);
void kc_vcpu_activate(struct kc_vcpu *vcpu);
void kc_vcpu_suspend(struct kc_vcpu *vcpu);
int kc_vcpu_resume(struct kc_vcpu *vcpu, struct kc_error *err);
int kc_vcpu_switch_out(struct kc_vcpu *vcpu, struct kc_error *err);
/* Both are idle and the other is switched out: state is then to be moved by the caller. */
int kc_vcpu_take_over_check(struct kc_vcpu *vcpu, struct kc_error *err);
void kc_vcpu_take_over_done(struct kc_vcpu *vcpu, bool active);

/* From any thread: */
/* The VM is open, and the vCPU was started. */
int kc_vcpu_check_any_thread(struct kc_vcpu *vcpu, struct kc_error *err);
bool kc_vcpu_stop(struct kc_vcpu *vcpu);
void kc_vcpu_wakeup(struct kc_vcpu *vcpu);
int kc_vcpu_interrupt(struct kc_vcpu *vcpu, unsigned int vector, struct kc_error *err);
int kc_vcpu_nmi(struct kc_vcpu *vcpu, struct kc_error *err);
/* 1: drained, 0: not yet, -1: error. */
int kc_vcpu_drain(struct kc_vcpu *vcpu, struct kc_error *err);
void kc_vcpu_request(struct kc_vcpu *vcpu, unsigned int request);
/* The tick that the vCPU has reached, the entry in progress included. */
uint64_t kc_vcpu_live_tick(struct kc_vcpu *vcpu);

/* On the vCPU's thread: instructions were committed (V9). */
void kc_vcpu_add_insts(struct kc_vcpu *vcpu, uint64_t insts);

/* kc_vcpu.entry_pc: nowhere */
#define KC_NO_STEP (UINT64_MAX - 1)

/* The same of a sum: the fraction that is left over is kept for the next. */
static inline uint64_t kc_scale_on(uint64_t n, unsigned __int128 factor, uint64_t *fraction)
{
	uint64_t whole = (uint64_t)(factor >> 64), part = (uint64_t)factor;
	unsigned __int128 sum = (unsigned __int128)n * part + *fraction;

	*fraction = (uint64_t)sum;
	return n * whole + (uint64_t)(sum >> 64);
}

static inline uint64_t kc_scale(uint64_t n, unsigned __int128 factor)
{
	/* 64 x 64.64 bits, without overflow as long as the result fits in 64 bits */
	uint64_t whole = (uint64_t)(factor >> 64), part = (uint64_t)factor;

	return n * whole + (uint64_t)(((unsigned __int128)n * part) >> 64);
}

const char *kc_status_name(enum kc_status status);
const char *kc_stop_name(enum kc_stop stop);

#endif
