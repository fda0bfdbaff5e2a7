// SPDX-License-Identifier: MIT
/* Running a vCPU: steps of the state machine (V7), and the loop around them. */
#include "vcpu.h"

#include "arch/arch.h"
#include "cleanup.h"
#include "drain.h"
#include "entry.h"
#include "exits.h"
#include "hostclock.h"
#include "instructions.h"
#include "vm.h"

/* ---- steps (V7) ---- */

/* To the next edge of the clock, without a division: some processors take longer for one than for all the rest. */
static uint64_t align_up(const struct kc_vcpu *vcpu, uint64_t tick)
{
	uint64_t last = tick + (vcpu->period - 1);
	uint64_t rest = last - kc_scale(last, vcpu->periods_per_tick) * vcpu->period;

	/* The factor is rounded down: there may be a period or two left. */
	while (rest >= vcpu->period)
		rest -= vcpu->period;
	return last - rest;
}

/* How long the next entry may be. */
static uint64_t entry_limit(struct kc_vcpu *vcpu)
{
	uint64_t end = kc_queue_next(vcpu->queue);

	if (end > vcpu->run_end)
		end = vcpu->run_end;
	if (end == KC_NEVER)
		return KC_NEVER;
	return end > vcpu->next_step ? end - vcpu->next_step : 1;
}

/* After an entry; number: exits.total before it. */
kc_hot int entered(struct kc_vcpu *vcpu, int failed, uint64_t number, uint64_t ticks)
{
	if (__builtin_expect(vcpu->exits.total == number, 0))
		return -1;
	vcpu->status = vcpu->run->exit_reason == KVM_EXIT_INTR ? KC_RUNNING : KC_SERVICE;
	if (__builtin_expect(vcpu->stepping || vcpu->stale_halt ||
				     vcpu->run->exit_reason == KVM_EXIT_DEBUG,
			     0))
		kc_insts_after_step(vcpu, ticks);
	else if (ticks && vcpu->time_source != KC_TIME_PERF)
		vcpu->insts_known = false;
	return failed;
}

kc_hot int enter(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *delay, struct kc_error *err)
{
	uint64_t number = vcpu->exits.total;
	int failed = kc_entry(vcpu, ticks, delay, err);

	return entered(vcpu, failed, number, ticks);
}

kc_hot int step_entry(struct kc_vcpu *vcpu, uint64_t *delay, struct kc_error *err)
{
	uint64_t limit;
	int later;

	if (__builtin_expect(atomic_load_explicit(&vcpu->requests, memory_order_relaxed) &
				     (KC_REQUEST_INTERRUPT | KC_REQUEST_NMI),
			     0) &&
	    !vcpu->draining && kc_arch_deliver_interrupts(vcpu, err))
		return -1;
	if (__builtin_expect(kc_insts_are_watched(vcpu), 0)) {
		later = kc_insts_before_entry(vcpu, err);
		if (later || vcpu->insts_reached)
			return later < 0 ? -1 : 0;
	}
	if (vcpu->draining) {
		if (kc_drain_limit(vcpu, &limit, err))
			return -1;
	} else if (vcpu->status == KC_COMPLETION &&
		   (vcpu->step_open || vcpu->half_first || !vcpu->active)) {
		limit = 0;
	} else {
		limit = entry_limit(vcpu);
	}
	vcpu->half_first = false;
	if (enter(vcpu, limit, delay, err))
		return -1;
	if (!vcpu->active && vcpu->status == KC_RUNNING)
		vcpu->status = KC_IDLE;
	return 0;
}

/* One step; moves next_step on, and lets a drain try again. */
kc_hot int step(struct kc_vcpu *vcpu, uint64_t *delay, struct kc_error *err)
{
	int failed;

	*delay = 0;
	if (vcpu->status == KC_SERVICE)
		failed = kc_exit_service(vcpu, delay, err);
	else
		failed = step_entry(vcpu, delay, err);
	if (*delay)
		vcpu->next_step = align_up(vcpu, vcpu->next_step + *delay);
	if (failed)
		return -1;
	return __builtin_expect(vcpu->draining, 0) ? kc_drain_again(vcpu, err) : 0;
}

static kc_cold int call_events(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kc_vm *vm = vcpu->vm;
	size_t called;
	int failed;

	kc_lock_take(&vm->device_lock);
	failed = kc_queue_service(vcpu->queue, vcpu->next_step, &called, err);
	kc_lock_release(&vm->device_lock);
	return failed;
}

/* Whether an event, or the end of the run, comes before the next step. */
kc_hot bool is_due(const struct kc_vcpu *vcpu)
{
	uint64_t next = kc_queue_next(vcpu->queue), now = kc_queue_now(vcpu->queue);

	if (next > vcpu->run_end)
		next = vcpu->run_end;
	return __builtin_expect(next <= vcpu->next_step || next <= now, 0);
}

/* Time moves on to the next step; true if an event is due before that, and time stays. */
kc_hot bool event_is_due(struct kc_vcpu *vcpu)
{
	struct kc_queue *queue = vcpu->queue;
	uint64_t now = kc_queue_now(queue);

	/* Another vCPU of the queue, or the user, is further. */
	if (vcpu->next_step < now)
		vcpu->next_step = now;
	if (__builtin_expect(kc_queue_next(queue) <= vcpu->next_step, 0))
		return true;
	if (now < vcpu->next_step)
		kc_queue_advance(queue, vcpu->next_step);
	return false;
}

static void count_running(struct kc_vm *vm, int change)
{
	kc_hold(&vm->lock);
	vm->running = (unsigned int)((int)vm->running + change);
}

/*
 * Wait for others of the VM. Those that share the queue move its time, also in an entry that still lasts; where
 * none does, it passes as the host's.
 */
static void wait_idle(struct kc_vcpu *vcpu, uint64_t until)
{
	bool own_time = !kc_queue_moves(vcpu->queue, vcpu);
	uint64_t before = kc_hostclock();
	double ns = 1e6, ticks;

	if (until > vcpu->run_end)
		until = vcpu->run_end;
	/* Less, where something is due before that; an event may be due at once by now. */
	ticks = until > vcpu->next_step ? (double)(until - vcpu->next_step) : 0;
	if (own_time && ticks * vcpu->ns_per_tick < ns)
		ns = ticks * vcpu->ns_per_tick;
	atomic_store(&vcpu->waiting, true);
	kc_kick_wait(vcpu, (uint64_t)ns + 1);
	atomic_store(&vcpu->waiting, false);
	if (!own_time) {
		if (vcpu->run_end != KC_NEVER && kc_queue_live_now(vcpu->queue) >= vcpu->run_end)
			vcpu->next_step = vcpu->run_end;
		return;
	}
	ticks = (double)(kc_hostclock() - before) / vcpu->hostclock_per_ns / vcpu->ns_per_tick;
	if (until <= vcpu->next_step)
		return;
	if (until - vcpu->next_step > (uint64_t)ticks)
		vcpu->next_step = align_up(vcpu, vcpu->next_step + (uint64_t)ticks);
	else
		vcpu->next_step = until;
}

/* Whether somebody asked for something that ends a halt. */
static bool woken(struct kc_vcpu *vcpu)
{
	unsigned int requests = atomic_load(&vcpu->requests);

	return requests & (KC_REQUEST_WAKEUP | KC_REQUEST_NMI) ||
	       ((requests & KC_REQUEST_INTERRUPT) && kc_arch_takes_interrupts(vcpu));
}

/*
 * Idle inside a run. While other vCPUs of the VM run, they may wake this one: wait. Else time jumps to the next
 * event; without one nothing is left that can wake it. 1: the run is over, 0: look again, -1: an error.
 */
static int idle(struct kc_vcpu *vcpu, unsigned int *polls, struct kc_error *err)
{
	struct kc_vm *vm = vcpu->vm;
	uint64_t until = kc_queue_next(vcpu->queue);
	bool alone;

	/* An event that was called just now, or another thread, woke it. */
	if (atomic_load(&vcpu->requests) & ~KC_REQUEST_INTERRUPT || woken(vcpu))
		return 0;
	pthread_mutex_lock(&vm->lock);
	alone = --vm->running == 0;
	pthread_mutex_unlock(&vm->lock);
	if (!alone) {
		wait_idle(vcpu, until);
		count_running(vm, 1);
		/* The host's signals are shut out while it waits: let them in every 16 ms. */
		return ++*polls % 16 ? 0 : kc_kick_host_signals(vcpu, err);
	}
	count_running(vm, 1);
	if (until == KC_NEVER) {
		vcpu->stop_reason = KC_STOP_IDLE;
		return 1;
	}
	if (until > vcpu->run_end)
		until = vcpu->run_end;
	if (vcpu->next_step < until)
		vcpu->next_step = until;
	return 0;
}

/* What other threads asked for. */
static int look_at_requests(struct kc_vcpu *vcpu, struct kc_error *err)
{
	unsigned int requests = atomic_load(&vcpu->requests);

	if (requests & KC_REQUEST_STOP) {
		atomic_fetch_and(&vcpu->requests, ~KC_REQUEST_STOP);
		vcpu->stop_reason = KC_STOP_STOP;
		return 0;
	}
	if (requests & KC_REQUEST_INSTS) {
		atomic_fetch_and(&vcpu->requests, ~KC_REQUEST_INSTS);
		vcpu->stop_reason = KC_STOP_INSTS;
		return 0;
	}
	if (!vcpu->active && woken(vcpu))
		kc_vcpu_activate(vcpu);
	atomic_fetch_and(&vcpu->requests, ~(requests & KC_REQUEST_WAKEUP));
	if (requests & KC_REQUEST_DRAIN) {
		atomic_fetch_and(&vcpu->requests, ~KC_REQUEST_DRAIN);
		vcpu->draining = true;
		return kc_drain_again(vcpu, err);
	}
	return 0;
}

/* ---- the short way ---- */

kc_hot bool is_asked(struct kc_vcpu *vcpu)
{
	return __builtin_expect(atomic_load_explicit(&vcpu->requests, memory_order_acquire), 0);
}

static bool is_plain(struct kc_vcpu *vcpu)
{
	return vcpu->time_source == KC_TIME_TSC && vcpu->active && !vcpu->draining &&
	       !is_asked(vcpu) && !kc_insts_are_watched(vcpu) && !vcpu->debug_control &&
	       !vcpu->told_debug && !kc_lock_is_mine(&vcpu->vm->device_lock);
}

/*
 * Entries and the accesses that end them, without what a step (V7) looks at each time and a plain vCPU never has.
 * Comes back with whatever else there is to do; the state is then as after a step.
 */
kc_exit_path static __attribute__((noinline)) int run_plainly(struct kc_vcpu *vcpu,
							      struct kc_error *err)
{
	uint64_t delay, number;
	int failed;

	vcpu->clock_at = 0;
	vcpu->insts_known = false;
	do {
		number = vcpu->exits.total;
		failed = kc_entry_plain(vcpu, entry_limit(vcpu), &delay, err);
		if (__builtin_expect(vcpu->exits.total == number, 0))
			return -1;
		vcpu->status = vcpu->run->exit_reason == KVM_EXIT_INTR ? KC_RUNNING : KC_SERVICE;
		vcpu->next_step = align_up(vcpu, vcpu->next_step + delay);
		if (__builtin_expect(failed, 0))
			return -1;
		if (is_asked(vcpu) || is_due(vcpu))
			return 0;
		/* Where nobody looks at it, the queue's time need not move on. */
		if (kc_exit_service_briefly(vcpu))
			continue;
		vcpu->clock_at = 0;
		if (event_is_due(vcpu) || vcpu->status != KC_SERVICE)
			return 0;
		failed = kc_exit_service(vcpu, &delay, err);
		if (delay)
			vcpu->next_step = align_up(vcpu, vcpu->next_step + delay);
		if (__builtin_expect(failed, 0))
			return -1;
		if (vcpu->exit_unhandled || !vcpu->active || !vcpu->plain || is_asked(vcpu))
			return 0;
	} while (!is_due(vcpu));
	return 0;
}

/* Step until a reason to stop; it is then in stop_reason. */
kc_exit_path static int run_loop(struct kc_vcpu *vcpu, struct kc_error *err)
{
	unsigned int polls = 0;
	uint64_t delay;
	int over;

	for (;;) {
		if (is_asked(vcpu) && look_at_requests(vcpu, err))
			return -1;
		if (event_is_due(vcpu) && call_events(vcpu, err))
			return -1;
		if (vcpu->drained)
			vcpu->stop_reason = KC_STOP_DRAINED;
		if (__builtin_expect(vcpu->stop_reason != KC_STOP_NONE, 0))
			return 0;
		if (vcpu->next_step >= vcpu->run_end) {
			vcpu->stop_reason = KC_STOP_TICKS;
			return 0;
		}
		if (vcpu->status == KC_IDLE) {
			over = idle(vcpu, &polls, err);
			if (over)
				return over < 0 ? -1 : 0;
			continue;
		}
		vcpu->plain = vcpu->status != KC_SERVICE && is_plain(vcpu);
		if (vcpu->plain ? run_plainly(vcpu, err) : step(vcpu, &delay, err))
			return -1;
		if (__builtin_expect(vcpu->exit_unhandled, 0))
			vcpu->stop_reason = KC_STOP_EXIT;
		else if (__builtin_expect(vcpu->insts_reached, 0))
			vcpu->stop_reason = KC_STOP_INSTS;
	}
}

kc_exit_path static int check_runnable(struct kc_vcpu *vcpu, struct kc_error *err)
{
	if (kc_vcpu_check(vcpu, err))
		return -1;
	if (vcpu->switched_out)
		return kc_fail(
			err, KC_ERR_STATE,
			"%s is switched out: run the one that took over, or let this one take "
			"over again",
			vcpu->name);
	if (vcpu->drained)
		return kc_fail(err, KC_ERR_STATE, "%s is drained: call resume() first", vcpu->name);
	return 0;
}

/* A thread counts once in its VM: a vCPU that it runs further out, in a handler of which this is, wakes nobody. */
static bool counts(const struct kc_vcpu *vcpu)
{
	for (const struct kc_vcpu *outer = vcpu->outer; outer; outer = outer->outer)
		if (outer->vm == vcpu->vm)
			return false;
	return true;
}

kc_exit_path int kc_vcpu_run(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed,
			     struct kc_error *err)
{
	uint64_t start;
	int failed;

	if (check_runnable(vcpu, err) || kc_entry_begin(vcpu, err))
		return -1;
	count_running(vcpu->vm, counts(vcpu));
	vcpu->stop_reason = KC_STOP_NONE;
	vcpu->exit_unhandled = vcpu->insts_reached = false;
	start = kc_queue_now(vcpu->queue);
	if (vcpu->next_step > start)
		start = vcpu->next_step;
	else
		vcpu->next_step = start;
	if (ticks != KC_NEVER)
		vcpu->run_end = ticks < KC_NEVER - start ? start + ticks : KC_NEVER;
	failed = run_loop(vcpu, err);
	/* After an error events may be due that the next run calls. */
	if (kc_queue_next(vcpu->queue) > vcpu->next_step)
		kc_queue_advance(vcpu->queue, vcpu->next_step);
	if (failed)
		vcpu->stop_reason = KC_STOP_ERROR;
	vcpu->run_end = KC_NEVER;
	*passed = vcpu->next_step - start;
	count_running(vcpu->vm, -(int)counts(vcpu));
	kc_entry_end(vcpu);
	return failed;
}

int kc_vcpu_step(struct kc_vcpu *vcpu, uint64_t n, uint64_t *done, struct kc_error *err)
{
	uint64_t passed;
	int failed;

	uint64_t outer = vcpu->steps_left;

	*done = 0;
	if (!n)
		return kc_vcpu_check(vcpu, err);
	vcpu->steps_left = n;
	failed = kc_vcpu_run(vcpu, KC_NEVER, &passed, err);
	*done = n - vcpu->steps_left;
	/* A handler that steps the vCPU that called it is refused, and the steps in progress go on. */
	vcpu->steps_left = outer;
	return failed;
}

int kc_vcpu_tick(struct kc_vcpu *vcpu, uint64_t *delay, struct kc_error *err)
{
	uint64_t start = 0;
	int failed;

	*delay = 0;
	if (check_runnable(vcpu, err) || kc_entry_begin(vcpu, err))
		return -1;
	vcpu->exit_unhandled = vcpu->insts_reached = false;
	failed = look_at_requests(vcpu, err);
	if (!failed && vcpu->status == KC_IDLE && !vcpu->drained)
		failed = kc_fail(err, KC_ERR_STATE,
				 "%s is Idle: there is no step to take; wakeup() it", vcpu->name);
	if (!failed && !vcpu->drained) {
		failed = event_is_due(vcpu) && call_events(vcpu, err);
		start = vcpu->next_step;
		failed = failed || step(vcpu, delay, err);
		*delay = vcpu->next_step - start;
	}
	kc_entry_end(vcpu);
	return failed ? -1 : 0;
}

/* An entry that no step of the state machine prepares. Not before it is known that there is no run in progress. */
static void enter_alone(struct kc_vcpu *vcpu)
{
	vcpu->stepping = vcpu->step_open = false;
	vcpu->entry_pc = vcpu->stale_halt ? kc_arch_pc(vcpu) : KC_NO_STEP;
}

kc_hot void move_on(struct kc_vcpu *vcpu, uint64_t passed)
{
	vcpu->next_step = align_up(vcpu, vcpu->next_step + passed);
	if (kc_queue_next(vcpu->queue) > vcpu->next_step)
		kc_queue_advance(vcpu->queue, vcpu->next_step);
}

kc_exit_path int kc_vcpu_half_entry(struct kc_vcpu *vcpu, struct kc_error *err)
{
	uint64_t passed, number = vcpu->exits.total;

	/* It does not stay in the guest: no signal, timer or counter to care about, and no device to wait for. */
	if (atomic_load(&vcpu->kick.thread) || vcpu->time_source == KC_TIME_PERF ||
	    atomic_load(&vcpu->vm->coalesces))
		return 1;
	if (check_runnable(vcpu, err))
		return -1;
	enter_alone(vcpu);
	if (entered(vcpu, kc_entry_half(vcpu, &passed, err), number, 0))
		return -1;
	move_on(vcpu, passed);
	return 0;
}

int kc_vcpu_enter(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed, struct kc_error *err)
{
	int failed;

	if (check_runnable(vcpu, err) || kc_entry_begin(vcpu, err))
		return -1;
	enter_alone(vcpu);
	failed = (ticks && kc_arch_deliver_interrupts(vcpu, err)) ||
		 enter(vcpu, ticks, passed, err);
	kc_entry_end(vcpu);
	if (failed)
		return -1;
	move_on(vcpu, *passed);
	return 0;
}

int kc_vcpu_set_debug(struct kc_vcpu *vcpu, const struct kvm_guest_debug *debug,
		      struct kc_error *err)
{
	if (kc_vcpu_check(vcpu, err))
		return -1;
	vcpu->debug_control = debug->control;
	vcpu->debug_arch = debug->arch;
	if (vcpu->told_debug)
		vcpu->told_debug = UINT32_MAX;
	vcpu->plain = false;
	return 0;
}
