// SPDX-License-Identifier: MIT
#include "entry.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <time.h>

#include "arch/arch.h"
#include "cleanup.h"
#include "exits.h"
#include "hostclock.h"
#include "instructions.h"
#include "vcpu.h"
#include "vm.h"

/* ---- following the thread (V4: a vCPU may run on another one each time) ---- */

int kc_entry_begin(struct kc_vcpu *vcpu, struct kc_error *err)
{
	if (kc_kick_begin(vcpu, err))
		return -1;
	/* Only now a close of the VM is sure to stop this run: before, it may have found nobody to stop. */
	if (kc_vm_check(vcpu->vm, err)) {
		kc_kick_end(vcpu);
		return -1;
	}
	kc_insts_begin(vcpu);
	if (vcpu->attached_to == vcpu->kick.serial)
		return 0;
	kc_timer_detach(&vcpu->timer);
	kc_counters_detach(&vcpu->counters);
	vcpu->armed_until = 0;
	vcpu->attached_to = 0;
	if (kc_timer_attach(&vcpu->timer, err) ||
	    (vcpu->time_source == KC_TIME_PERF &&
	     kc_counters_attach(&vcpu->counters, atomic_load(&vcpu->kick.thread), err))) {
		kc_insts_end(vcpu);
		kc_kick_end(vcpu);
		return -1;
	}
	vcpu->attached_to = vcpu->kick.serial;
	return 0;
}

void kc_entry_end(struct kc_vcpu *vcpu)
{
	struct kc_error ignored;

	kc_timer_disarm(&vcpu->timer, &ignored);
	vcpu->armed_until = 0;
	kc_insts_end(vcpu);
	if (__builtin_expect(vcpu->counters.period != 0, 0)) {
		/* One that counts the host too would go on sending its signal, which nothing blocks outside. */
		kc_counters_detach(&vcpu->counters);
		vcpu->counters.period = 0;
		vcpu->attached_to = 0;
		vcpu->kick.expected = true;
	}
	kc_kick_end(vcpu);
}

/* ---- the run timer ---- */

/*
 * The timer stays armed over several entries while it fires soon enough: an exit then costs no system call for
 * it. It may then fire early, by what was spent outside the guest; the run goes on and arms it anew.
 */
static kc_cold int bound(struct kc_vcpu *vcpu, uint64_t ticks, struct kc_error *err)
{
	uint64_t now = kc_hostclock(), until = vcpu->shut_at ? vcpu->shut_at : KC_NEVER;

	if (ticks != KC_NEVER) {
		double counts = (double)ticks * vcpu->ns_per_tick * vcpu->hostclock_per_ns;
		uint64_t end = counts < 0x1p62 ? now + (uint64_t)counts : KC_NEVER;

		if (end < until)
			until = end;
	}
	if (until == KC_NEVER || (vcpu->armed_until > now && vcpu->armed_until <= until))
		return 0;
	vcpu->armed_until = until;
	vcpu->kick.expected = true;
	kc_trace(vcpu, KvmTimer, "armed for %.0f ns",
		 (double)(int64_t)(until - now) / vcpu->hostclock_per_ns);
	return kc_timer_arm(
		&vcpu->timer,
		until > now ? (uint64_t)((double)(until - now) / vcpu->hostclock_per_ns) : 1, err);
}

/* ---- single steps and breakpoints ---- */

kc_hot int set_debug(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kvm_guest_debug debug;

	if (__builtin_expect(!(vcpu->debug_control | vcpu->told_debug) && !vcpu->stepping, 1))
		return 0;
	debug = (struct kvm_guest_debug){ .control = vcpu->debug_control,
					  .arch = vcpu->debug_arch };
	if (vcpu->stepping)
		debug.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
	if (debug.control == vcpu->told_debug &&
	    !(debug.control & KVM_GUESTDBG_SINGLESTEP && vcpu->loses_step))
		return 0;
	if (kc_context_flush(vcpu, err))
		return -1;
	if (ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, &debug))
		return kc_fail_os(err, "KVM_SET_GUEST_DEBUG");
	vcpu->told_debug = debug.control;
	kc_context_invalidate(vcpu);
	return 0;
}

/* ---- adding up (V9) ---- */

static uint64_t thread_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* What the time source counted up to now, for sources that are read before and after an entry. */
kc_hot int read_source(struct kc_vcpu *vcpu, enum kc_time_source source, uint64_t *count,
		       struct kc_error *err)
{
	uint64_t insts;

	switch (source) {
	case KC_TIME_THREAD:
		*count = thread_ns();
		return 0;
	case KC_TIME_PERF:
		/* A counter that excludes the host needs no reading before. */
		*count = 0;
		return vcpu->counters.guest_only
			       ? 0
			       : kc_counters_read(&vcpu->counters, count, &insts, err);
	default:
		*count = kc_hostclock();
		return 0;
	}
}

kc_hot int count_since(struct kc_vcpu *vcpu, enum kc_time_source source, uint64_t before,
		       uint64_t *count, struct kc_error *err)
{
	uint64_t insts;

	switch (source) {
	case KC_TIME_THREAD:
		*count = thread_ns() - before;
		return 0;
	case KC_TIME_PERF:
		if (kc_counters_read(&vcpu->counters, count, &insts, err))
			return -1;
		/* Single steps are counted one by one, exactly, where the counter counts instructions. */
		if (!vcpu->stepping || !vcpu->counters.hardware)
			kc_vcpu_add_insts(vcpu, insts);
		return 0;
	default:
		*count = kc_hostclock();
		/* Counters of two processors may differ a little, where the thread has moved. */
		*count = *count > before ? *count - before : 0;
		return 0;
	}
}

/* ---- the entry ---- */

/* KVM_RUN's errors that are exits in truth. 0: go on, -1: an error. */
kc_exit_path static int sort_error(struct kc_vcpu *vcpu, struct kc_error *err)
{
	/* It took what rode along, and may have run the guest before it failed. */
	if (!vcpu->run->kvm_dirty_regs)
		kc_context_entered(&vcpu->context);
	switch (errno) {
	case EINTR:
	case EAGAIN: /* a vCPU that waits for its start-up interrupt woke up */
		vcpu->run->exit_reason = KVM_EXIT_INTR;
		return 0;
	case EFAULT:
		if (vcpu->run->exit_reason == KVM_EXIT_MEMORY_FAULT)
			return 0;
		break;
	case EINVAL:
		return kc_context_refused(vcpu, err);
	case EIO:
		return kc_fail(
			err, KC_ERR_FORKED,
			"KVM_RUN: this process is not the one that made the virtual machine");
	}
	return kc_fail_os(err, "KVM_RUN");
}

/* Known when an entry is compiled: what the shorter ones may leave out is left out. */
enum kind { ANY, PLAIN, HALF };

kc_hot int enter_guest(struct kc_vcpu *vcpu, uint64_t ticks, enum kind kind, uint64_t *passed,
		       struct kc_error *err)
{
	bool plain = kind == PLAIN, half = kind == HALF || (kind == ANY && !ticks);
	enum kc_time_source source = plain ? KC_TIME_TSC : vcpu->time_source;
	struct kvm_run *run = vcpu->run;
	uint64_t before = 0, count = 0, cycles;
	int result, failed;

	if (__builtin_expect(vcpu->context.dirty != 0, 0) && kc_context_push(vcpu, err))
		return -1;
	if (!plain && set_debug(vcpu, err))
		return -1;
	run->immediate_exit = half;
	/* A half entry runs no guest code: there is nothing to bound and nothing to measure. */
	if (!half) {
		if (__builtin_expect(ticks != KC_NEVER ||
					     (vcpu->shut_at && vcpu->shut_at != vcpu->armed_until),
				     0) &&
		    bound(vcpu, ticks, err))
			return -1;
		/* What the core takes for a brief access counts as the kernel's part of the exit does. */
		if (plain && vcpu->clock_at)
			before = vcpu->clock_at;
		else if (read_source(vcpu, source, &before, err))
			return -1;
		atomic_store_explicit(&vcpu->entry_start,
				      source == KC_TIME_TSC ? before : kc_hostclock(),
				      memory_order_relaxed);
	}
	run->exit_reason = KVM_EXIT_UNKNOWN;
	result = ioctl(vcpu->fd, KVM_RUN, 0);
	if (!half)
		atomic_store_explicit(&vcpu->entry_start, 0, memory_order_relaxed);
	if (__builtin_expect(result < 0, 0) && sort_error(vcpu, err))
		return -1;
	if (__builtin_expect(kc_context_entered(&vcpu->context), 0))
		kc_context_sync_less(vcpu);
	vcpu->entered = true;
	kc_stat_add(&vcpu->stats, KC_STAT_exits, 1);
	/* Also when the time is not known: the entry took place, and its exit is still to be serviced. */
	failed = half ? 0 : count_since(vcpu, source, before, &count, err);
	if (!half) {
		*passed = kc_scale_on(count, vcpu->ticks_per_count, &vcpu->tick_fraction);
		cycles = kc_scale_on(count, vcpu->cycles_per_count, &vcpu->cycle_fraction);
	} else {
		*passed = vcpu->period;
		cycles = 1;
		kc_stat_add(&vcpu->stats, KC_STAT_half_entries, 1);
	}
	vcpu->clock_at = plain ? before + count : 0;
	kc_stat_add(&vcpu->stats, KC_STAT_cycles, cycles);
	kc_stat_add(&vcpu->stats, KC_STAT_ticks, *passed);
	kc_exit_note(vcpu, vcpu->next_step + *passed);
	if (!half && !failed &&
	    __builtin_expect(
		    (source == KC_TIME_TSC ? before + count : kc_hostclock()) >= vcpu->ask_at, 0))
		return kc_kick_host_signals(vcpu, err);
	return failed;
}

/* An entry that a signal ended: whose signal was it? */
static kc_cold int interrupted(struct kc_vcpu *vcpu, int failed, struct kc_error *err)
{
	bool ours;
	uint64_t now;

	kc_stat_add(&vcpu->stats, KC_STAT_exit_signal, 1);
	if (failed)
		return -1;
	ours = kc_kick_consume(vcpu);
	now = kc_hostclock();
	/* The host program's; or our own, and its are to be shut out again (kick.h). */
	if (!ours || (vcpu->shut_at && now >= vcpu->shut_at))
		return kc_kick_host_signals(vcpu, err);
	return 0;
}

kc_hot int entry(struct kc_vcpu *vcpu, uint64_t ticks, enum kind kind, uint64_t *passed,
		 struct kc_error *err)
{
	struct kc_lock *lock = &vcpu->vm->device_lock;
	uint64_t latency = 0, number = vcpu->exits.total;
	unsigned int depth = 0;
	int failed;

	/* A handler that runs another vCPU holds the lock: that one must not take it into the guest (V24). */
	if (kind == ANY && __builtin_expect(kc_lock_is_mine(lock), 0))
		depth = kc_lock_drop(lock);
	failed = enter_guest(vcpu, ticks, kind, passed, err);
	if (depth)
		kc_lock_retake(lock, depth);
	if (__builtin_expect(vcpu->exits.total == number, 0))
		return -1;
	/* A half entry comes back by itself, unless a signal is there too: that one stays pending. */
	if (ticks && __builtin_expect(vcpu->run->exit_reason == KVM_EXIT_INTR, 0))
		failed = interrupted(vcpu, failed, err);
	if (kind != HALF && __builtin_expect(kc_exit_ring_filled(vcpu), 0)) {
		if (kc_exit_drain_ring(vcpu, &latency, failed ? &(struct kc_error){ 0 } : err))
			failed = -1;
		*passed += latency;
	}
	return failed ? -1 : 0;
}

kc_exit_path int kc_entry(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed,
			  struct kc_error *err)
{
	return entry(vcpu, ticks, ANY, passed, err);
}

kc_exit_path int kc_entry_plain(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed,
				struct kc_error *err)
{
	return entry(vcpu, ticks, PLAIN, passed, err);
}

kc_exit_path int kc_entry_half(struct kc_vcpu *vcpu, uint64_t *passed, struct kc_error *err)
{
	return entry(vcpu, 0, HALF, passed, err);
}
