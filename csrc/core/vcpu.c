// SPDX-License-Identifier: MIT
/* The vCPU's life and state machine. One entry is entry.c, servicing is exits.c, draining is drain.c. */
#include "vcpu.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/perf_event.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arch/arch.h"
#include "cleanup.h"
#include "drain.h"
#include "entry.h"
#include "exits.h"
#include "hostclock.h"
#include "instructions.h"
#include "perf.h"
#include "vm.h"

const char *kc_status_name(enum kc_status status)
{
	static const char *const names[] = { "Idle", "Running", "RunningService",
					     "RunningServiceCompletion" };

	return names[status];
}

const char *kc_stop_name(enum kc_stop stop)
{
	static const char *const names[] = { "",     "ticks",	"idle",		"exit",
					     "stop", "drained", "instructions", "error" };

	return names[stop];
}

/* ---- construction ---- */

static unsigned __int128 fixed_point(long double value)
{
	uint64_t whole = (uint64_t)value;

	return (unsigned __int128)whole << 64 |
	       (unsigned __int128)((value - (long double)whole) * 0x1p64L);
}

static bool counts_nanoseconds(const struct kc_counters *counters)
{
	return counters->type == PERF_TYPE_SOFTWARE &&
	       (counters->config == PERF_COUNT_SW_CPU_CLOCK ||
		counters->config == PERF_COUNT_SW_TASK_CLOCK);
}

/* How many counts of the time source there are in a second of the host. */
static double choose_source(struct kc_vcpu *vcpu, const struct kc_vcpu_config *config,
			    struct kc_error *err)
{
	int error;

	vcpu->time_source = config->time_source;
	if (config->has_perf_event)
		kc_counters_use(&vcpu->counters, config->perf_type, config->perf_config);
	error = kc_counters_probe(&vcpu->counters);
	if (error)
		kc_perf_explain(error, vcpu->counter_error, sizeof(vcpu->counter_error));
	if (vcpu->time_source == KC_TIME_AUTO)
		vcpu->time_source = error ? KC_TIME_TSC : KC_TIME_PERF;
	if (vcpu->time_source == KC_TIME_PERF && error)
		return kc_perf_fail(error, err);
	if (config->use_perf_overflow) {
		if (error)
			return kc_perf_fail(error, err);
		kc_timer_use_perf(&vcpu->timer, vcpu->counters.type, vcpu->counters.config,
				  counts_nanoseconds(&vcpu->counters) ? 1e9
								      : kc_hostclock_frequency());
	}
	if (vcpu->time_source == KC_TIME_THREAD ||
	    (vcpu->time_source == KC_TIME_PERF && counts_nanoseconds(&vcpu->counters)))
		return 1e9;
	return kc_hostclock_frequency();
}

/* V1, V2, V9 */
static int set_time(struct kc_vcpu *vcpu, const struct kc_vcpu_config *config, struct kc_error *err)
{
	double rate = choose_source(vcpu, config, err);
	long double cycles_per_count, ticks_per_count, period, clock;

	if (rate < 0)
		return -1;
	if (!(config->host_factor > 0) || !isfinite(config->host_factor))
		return kc_fail(err, KC_ERR_VALUE, "host_factor must be positive and finite");
	vcpu->tick_frequency = vcpu->queue->tick_frequency;
	vcpu->hostclock_per_ns = kc_hostclock_frequency() / 1e9;
	vcpu->host_factor = config->host_factor;
	vcpu->host_freq = config->host_freq > 0 ? config->host_freq
			  : rate == 1e9		? kc_hostclock_frequency()
						: rate;
	/* Where nanoseconds are counted, cycles are derived from them. */
	cycles_per_count = (rate == 1e9 ? vcpu->host_freq / 1e9L : 1) * config->host_factor;
	ticks_per_count = cycles_per_count * (long double)vcpu->tick_frequency / vcpu->host_freq;
	clock = config->clock > 0 ? config->clock : vcpu->host_freq * config->host_factor;
	period = roundl((long double)vcpu->tick_frequency / clock);
	if (ticks_per_count >= 0x1p40L || cycles_per_count >= 0x1p40L || period >= 0x1p60L)
		return kc_fail(
			err, KC_ERR_VALUE,
			"host_freq, host_factor, clock and the tick frequency lie too far apart");
	vcpu->period = period < 1 ? 1 : (uint64_t)period;
	vcpu->periods_per_tick = vcpu->period == 1 ? (unsigned __int128)1 << 64
						   : UINT64_MAX / vcpu->period;
	vcpu->ticks_per_count = fixed_point(ticks_per_count);
	vcpu->cycles_per_count = fixed_point(cycles_per_count);
	vcpu->ns_per_tick = (double)(1e9L / (ticks_per_count * rate));
	return 0;
}

/* The VM hands out the ids (V4), and keeps its vCPUs in their order. */
static int join_vm(struct kc_vm *vm, struct kc_vcpu *vcpu, int id, struct kc_error *err)
{
	struct kc_vcpu **grown;
	size_t at;

	kc_hold(&vm->lock);
	if (kc_vm_check(vm, err))
		return -1;
	vcpu->id = id < 0 ? vm->next_vcpu_id : (unsigned int)id;
	for (at = 0; at < vm->vcpu_count && vm->vcpus[at]->id <= vcpu->id; at++) {
		if (vm->vcpus[at]->id != vcpu->id)
			continue;
		if (id >= 0)
			return kc_fail(err, KC_ERR_VALUE,
				       "the VM has a vCPU with the id %u already", vcpu->id);
		vcpu->id++; /* that one is constructed, and the kernel has not seen it yet */
	}
	grown = reallocarray(vm->vcpus, vm->vcpu_count + 1, sizeof(*grown));
	if (!grown)
		return kc_fail(err, KC_ERR_MEMORY, "out of memory");
	vm->vcpus = grown;
	memmove(&grown[at + 1], &grown[at], (vm->vcpu_count - at) * sizeof(*grown));
	grown[at] = vcpu;
	vm->vcpu_count++;
	return 0;
}

/* An id is used up for the VM's life when the kernel has made the vCPU, and only then. */
static void use_up_id(struct kc_vm *vm, unsigned int id)
{
	kc_hold(&vm->lock);
	if (vm->next_vcpu_id <= id)
		vm->next_vcpu_id = id + 1;
}

struct kc_vcpu *kc_vcpu_create(struct kc_vm *vm, int id, const struct kc_vcpu_config *config,
			       struct kc_error *err)
{
	size_t size = (sizeof(struct kc_vcpu) + KC_VCPU_ALIGN - 1) / KC_VCPU_ALIGN * KC_VCPU_ALIGN;
	kc_auto_free struct kc_vcpu *vcpu = aligned_alloc(KC_VCPU_ALIGN, size);

	if (!vcpu) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	memset(vcpu, 0, sizeof(*vcpu));
	atomic_init(&vcpu->refs, 1);
	vcpu->fd = -1;
	vcpu->queue = config->queue ? config->queue : vm->queue;
	vcpu->cpuid_supported = config->cpuid_supported;
	vcpu->run_end = vcpu->inst_stop = vcpu->steps_left = KC_NEVER;
	vcpu->insts_known = true;
	kc_kick_init(&vcpu->kick);
	kc_timer_init(&vcpu->timer);
	kc_counters_init(&vcpu->counters);
	if (set_time(vcpu, config, err) || kc_queue_attach(vcpu->queue, vcpu, err))
		return NULL;
	vcpu->vm = kc_vm_get(vm);
	if (join_vm(vm, vcpu, id, err)) {
		kc_queue_detach(vcpu->queue, vcpu);
		kc_vm_put(vm);
		return NULL;
	}
	kc_queue_get(vcpu->queue);
	if (config->name)
		snprintf(vcpu->name, sizeof(vcpu->name), "%s", config->name);
	else
		snprintf(vcpu->name, sizeof(vcpu->name), "cpu%u", vcpu->id);
	return kc_move(vcpu);
}

struct kc_vcpu *kc_vcpu_get(struct kc_vcpu *vcpu)
{
	atomic_fetch_add_explicit(&vcpu->refs, 1, memory_order_relaxed);
	return vcpu;
}

static void forget_vcpu(struct kc_vm *vm, struct kc_vcpu *vcpu)
{
	for (size_t i = 0; i < vm->vcpu_count; i++) {
		if (vm->vcpus[i] != vcpu)
			continue;
		vm->vcpu_count--;
		memmove(&vm->vcpus[i], &vm->vcpus[i + 1],
			(vm->vcpu_count - i) * sizeof(*vm->vcpus));
		return;
	}
}

static bool leave_vm(struct kc_vm *vm, struct kc_vcpu *vcpu)
{
	/* In the child of a fork a thread that is not there may hold the lock. */
	bool ours = vm->fork_generation == kc_fork_generation(), last;

	if (ours)
		pthread_mutex_lock(&vm->lock);
	/* Under the lock, so that kc_vm_vcpus() cannot revive it. */
	last = atomic_fetch_sub(&vcpu->refs, 1) == 1;
	if (last)
		forget_vcpu(vm, vcpu);
	if (ours)
		pthread_mutex_unlock(&vm->lock);
	return last;
}

void kc_vcpu_put(struct kc_vcpu *vcpu)
{
	struct kc_vm *vm;

	if (!vcpu)
		return;
	vm = vcpu->vm;
	if (!leave_vm(vm, vcpu))
		return;
	kc_vcpu_close(vcpu);
	kc_queue_detach(vcpu->queue, vcpu);
	kc_queue_put(vcpu->queue);
	pthread_mutex_destroy(&vcpu->kick.lock);
	free(vcpu);
	kc_vm_put(vm);
}

static int map_run(struct kc_vcpu *vcpu, struct kc_error *err)
{
	size_t page = kc_page_size();
	void *run;
	int at;

	vcpu->run_size = vcpu->vm->kvm->vcpu_mmap_size;
	run = mmap(NULL, vcpu->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->fd, 0);
	if (run == MAP_FAILED)
		return kc_fail_os(err, "mmap of the vCPU's run structure");
	vcpu->run = run;
	/* The coalesced ring: its page's number is the value of the capability (V4). */
	at = kc_kvm_check_extension(vcpu->vm->kvm, KVM_CAP_COALESCED_MMIO, err);
	if (at < 0)
		return -1;
	if (at > 0 && ((size_t)at + 1) * page <= vcpu->run_size) {
		vcpu->ring = (void *)((uint8_t *)run + (size_t)at * page);
		vcpu->ring_capacity = (uint32_t)((page - sizeof(*vcpu->ring)) /
						 sizeof(struct kvm_coalesced_mmio));
	}
	return 0;
}

int kc_vcpu_start(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kc_vm *vm = vcpu->vm;

	if (vcpu->started)
		return kc_fail(err, KC_ERR_STATE, "%s was started before", vcpu->name);
	if (kc_vm_check(vm, err) || kc_memory_mode_check(vm, err))
		return -1;
	vcpu->fd = kc_vm_ioctl(vm, KVM_CREATE_VCPU, "KVM_CREATE_VCPU", (void *)(uintptr_t)vcpu->id,
			       err);
	if (vcpu->fd < 0)
		return -1;
	use_up_id(vm, vcpu->id);
	if (map_run(vcpu, err) || kc_arch_vcpu_start(vcpu, err) || kc_context_start(vcpu, err)) {
		kc_vcpu_close(vcpu);
		vcpu->closed = false;
		return -1;
	}
	vcpu->started = true;
	vcpu->next_step = vcpu->idle_since = kc_queue_now(vcpu->queue);
	kc_vcpu_activate(vcpu);
	kc_trace(vcpu, Kvm, "started");
	return 0;
}

void kc_vcpu_close(struct kc_vcpu *vcpu)
{
	if (vcpu->closed)
		return;
	vcpu->closed = true;
	/* Timers do not cross a fork: their ids may mean others in the child. */
	if (vcpu->vm->fork_generation == kc_fork_generation())
		kc_timer_detach(&vcpu->timer);
	kc_counters_detach(&vcpu->counters);
	vcpu->attached_to = 0;
	kc_context_destroy(vcpu);
	if (vcpu->run)
		munmap(vcpu->run, vcpu->run_size);
	vcpu->run = NULL;
	vcpu->ring = NULL;
	if (vcpu->fd >= 0)
		close(vcpu->fd);
	vcpu->fd = -1;
}

/* ---- who works with it ---- */

/*
 * Nobody waits for a run. But a thread that only asks it to drain, or looks at a register, has it for a moment, and
 * what fails then would fail now and then for no reason that its caller could know.
 */
static int claim_soon(struct kc_vcpu *vcpu, struct kc_error *err)
{
	uint64_t end = kc_hostclock() + (uint64_t)(1e6 * vcpu->hostclock_per_ns);

	for (;;) {
		pthread_t nobody = 0;

		if (atomic_compare_exchange_strong(&vcpu->owner, &nobody, pthread_self()))
			return 0;
		if (kc_vm_check(vcpu->vm, err))
			return -1;
		if (atomic_load(&vcpu->kick.thread) || kc_hostclock() > end)
			return kc_fail(
				err, KC_ERR_BUSY,
				"%s is being run by another thread: stop() it first (kick(), stop(), "
				"interrupts, memory, statistics and events work at any time)",
				vcpu->name);
		sched_yield();
	}
}

int kc_vcpu_claim(struct kc_vcpu *vcpu, struct kc_error *err)
{
	pthread_t nobody = 0, self = pthread_self();

	if (atomic_load_explicit(&vcpu->owner, memory_order_relaxed) == self) {
		vcpu->owner_depth++;
		return 0;
	}
	/* A thread of the parent's that ran it at the fork is not there to let go of it. */
	if (kc_check_fork(vcpu->vm->fork_generation, err))
		return -1;
	if (__builtin_expect(!atomic_compare_exchange_strong(&vcpu->owner, &nobody, self), 0) &&
	    claim_soon(vcpu, err))
		return -1;
	vcpu->owner_depth = 1;
	return 0;
}

int kc_vcpu_check(struct kc_vcpu *vcpu, struct kc_error *err)
{
	if (__builtin_expect(vcpu->fd >= 0 && !atomic_load(&vcpu->vm->closed) &&
				     vcpu->vm->fork_generation == kc_fork_generation(),
			     1))
		return 0;
	if (kc_vm_check(vcpu->vm, err))
		return -1;
	return kc_fail(err, KC_ERR_NOT_STARTED, "%s was not started: call start() first",
		       vcpu->name);
}

void kc_vcpu_release(struct kc_vcpu *vcpu)
{
	struct kc_vm *vm = vcpu->vm;

	if (--vcpu->owner_depth)
		return;
	/* A handler closed the VM under its own run. */
	if (__builtin_expect(atomic_load(&vm->closed), 0) && vcpu->started)
		kc_vcpu_close(vcpu);
	atomic_store(&vcpu->owner, 0);
	if (__builtin_expect(atomic_load(&vm->closed), 0)) {
		kc_hold(&vm->lock);
		pthread_cond_broadcast(&vm->changed);
	}
}

/* ---- idle and active (V11) ---- */

void kc_vcpu_activate(struct kc_vcpu *vcpu)
{
	uint64_t now = kc_queue_now(vcpu->queue);

	if (vcpu->active)
		return;
	vcpu->active = true;
	if (vcpu->next_step < now)
		vcpu->next_step = now;
	if (vcpu->next_step > vcpu->idle_since)
		kc_stat_add(&vcpu->stats, KC_STAT_cycles,
			    (vcpu->next_step - vcpu->idle_since) / vcpu->period);
	if (vcpu->status == KC_IDLE && !vcpu->drained && !vcpu->switched_out)
		vcpu->status = KC_RUNNING;
}

void kc_vcpu_suspend(struct kc_vcpu *vcpu)
{
	if (!vcpu->active)
		return;
	vcpu->active = false;
	vcpu->idle_since = vcpu->next_step;
	/* A finished access is delivered first. */
	if (vcpu->status == KC_RUNNING)
		vcpu->status = KC_IDLE;
}

void kc_vcpu_request(struct kc_vcpu *vcpu, unsigned int requests)
{
	atomic_fetch_or(&vcpu->requests, requests);
	kc_kick(vcpu);
}

bool kc_vcpu_stop(struct kc_vcpu *vcpu)
{
	return kc_kick_with(vcpu, KC_REQUEST_STOP);
}

void kc_vcpu_wakeup(struct kc_vcpu *vcpu)
{
	kc_vcpu_request(vcpu, KC_REQUEST_WAKEUP);
}

static int check_any_thread(struct kc_vcpu *vcpu, struct kc_error *err)
{
	if (kc_vm_check(vcpu->vm, err))
		return -1;
	if (!vcpu->started)
		return kc_fail(err, KC_ERR_NOT_STARTED, "%s was not started: call start() first",
			       vcpu->name);
	return 0;
}

int kc_vcpu_interrupt(struct kc_vcpu *vcpu, unsigned int vector, struct kc_error *err)
{
	if (check_any_thread(vcpu, err))
		return -1;
	if (vector > 255)
		return kc_fail(err, KC_ERR_VALUE, "interrupt vector %u: it is 0 to 255", vector);
	if (vcpu->vm->irqchip)
		return kc_fail(
			err, KC_ERR_STATE,
			"the kernel has the interrupt controller and chooses the vector: use "
			"irq_line() or signal_msi()");
	atomic_fetch_or(&vcpu->interrupts[vector / 64], 1ULL << (vector % 64));
	kc_vcpu_request(vcpu, KC_REQUEST_INTERRUPT);
	return 0;
}

int kc_vcpu_nmi(struct kc_vcpu *vcpu, struct kc_error *err)
{
	if (check_any_thread(vcpu, err))
		return -1;
	kc_vcpu_request(vcpu, KC_REQUEST_NMI);
	return 0;
}

uint64_t kc_vcpu_live_tick(struct kc_vcpu *vcpu)
{
	uint64_t start = atomic_load_explicit(&vcpu->entry_start, memory_order_relaxed);
	uint64_t now = kc_queue_now(vcpu->queue), host = kc_hostclock();
	double ns;

	if (!start || host <= start)
		return now;
	ns = (double)(host - start) / vcpu->hostclock_per_ns;
	return now + (uint64_t)(ns / vcpu->ns_per_tick);
}

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

kc_hot int enter(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *delay, struct kc_error *err)
{
	uint64_t number = vcpu->exit_number;
	int failed = kc_entry(vcpu, ticks, delay, err);

	if (__builtin_expect(vcpu->exit_number == number, 0))
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
	} else if (vcpu->status == KC_COMPLETION && (vcpu->step_open || !vcpu->active)) {
		limit = 0;
	} else {
		limit = entry_limit(vcpu);
	}
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

/* Events that are due before the next step, and the time with them. */
kc_hot int serve_queue(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kc_queue *queue = vcpu->queue;
	uint64_t now = kc_queue_now(queue);

	/* Another vCPU of the queue, or the user, is further. */
	if (vcpu->next_step < now)
		vcpu->next_step = now;
	if (__builtin_expect(kc_queue_next(queue) <= vcpu->next_step, 0))
		return call_events(vcpu, err);
	if (now < vcpu->next_step)
		kc_queue_advance(queue, vcpu->next_step);
	return 0;
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

/* Step until a reason to stop; it is then in stop_reason. */
static int run_loop(struct kc_vcpu *vcpu, struct kc_error *err)
{
	unsigned int polls = 0;
	uint64_t delay;
	int over;

	for (;;) {
		if (__builtin_expect(atomic_load_explicit(&vcpu->requests, memory_order_acquire),
				     0) &&
		    look_at_requests(vcpu, err))
			return -1;
		if (serve_queue(vcpu, err))
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
		if (step(vcpu, &delay, err))
			return -1;
		if (__builtin_expect(vcpu->exit_unhandled, 0))
			vcpu->stop_reason = KC_STOP_EXIT;
		else if (__builtin_expect(vcpu->insts_reached, 0))
			vcpu->stop_reason = KC_STOP_INSTS;
	}
}

static int check_runnable(struct kc_vcpu *vcpu, struct kc_error *err)
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

static int run(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed, struct kc_error *err)
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

int kc_vcpu_run(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed, struct kc_error *err)
{
	return run(vcpu, ticks, passed, err);
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
	failed = run(vcpu, KC_NEVER, &passed, err);
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
		failed = serve_queue(vcpu, err);
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

bool kc_vcpu_half_entry_is_brief(struct kc_vcpu *vcpu)
{
	/* It does not stay in the guest: no signal, timer or counter to care about, and no device to wait for. */
	return !atomic_load(&vcpu->kick.thread) && vcpu->time_source != KC_TIME_PERF &&
	       !atomic_load(&vcpu->vm->coalesces);
}

int kc_vcpu_enter(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed, struct kc_error *err)
{
	int failed;

	if (check_runnable(vcpu, err))
		return -1;
	if (!ticks && kc_vcpu_half_entry_is_brief(vcpu)) {
		enter_alone(vcpu);
		failed = enter(vcpu, 0, passed, err);
	} else {
		if (kc_entry_begin(vcpu, err))
			return -1;
		enter_alone(vcpu);
		failed = (ticks && kc_arch_deliver_interrupts(vcpu, err)) ||
			 enter(vcpu, ticks, passed, err);
		kc_entry_end(vcpu);
	}
	if (failed)
		return -1;
	vcpu->next_step = align_up(vcpu, vcpu->next_step + *passed);
	if (kc_queue_next(vcpu->queue) > vcpu->next_step)
		kc_queue_advance(vcpu->queue, vcpu->next_step);
	return 0;
}

int kc_vcpu_set_debug(struct kc_vcpu *vcpu, const struct kvm_guest_debug *debug,
		      struct kc_error *err)
{
	if (kc_vcpu_check(vcpu, err))
		return -1;
	vcpu->debug = *debug;
	return 0;
}
