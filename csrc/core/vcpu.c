// SPDX-License-Identifier: MIT
/* The vCPU's life, who works with it, and what other threads ask of it. Running it is run.c. */
#include "vcpu.h"

#include <linux/perf_event.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "arch/arch.h"
#include "cleanup.h"
#include "drain.h"
#include "hostclock.h"
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
	vcpu->loses_step = kc_arch_loses_step();
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
	kc_auto_free struct kc_vcpu *vcpu = NULL;

	if (!kc_arch_file_count) {
		kc_fail(err, KC_ERR_UNSUPPORTED,
			"kvmcpu has no vCPU of %s yet: on this architecture it has virtual "
			"machines, their memory and event queues, and guests run on x86-64",
			kc_arch_name);
		return NULL;
	}
	vcpu = aligned_alloc(KC_VCPU_ALIGN, size);
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
int kc_vcpu_claim_soon(struct kc_vcpu *vcpu, struct kc_error *err)
{
	uint64_t end = kc_hostclock() + (uint64_t)(1e6 * vcpu->hostclock_per_ns);

	for (;;) {
		void *nobody = NULL;

		if (atomic_compare_exchange_strong(&vcpu->owner, &nobody, kc_thread()))
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

int kc_vcpu_fail_check(struct kc_vcpu *vcpu, struct kc_error *err)
{
	if (kc_vm_check(vcpu->vm, err))
		return -1;
	return kc_fail(err, KC_ERR_NOT_STARTED, "%s was not started: call start() first",
		       vcpu->name);
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
	vcpu->active = vcpu->plain = false;
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

int kc_vcpu_check_any_thread(struct kc_vcpu *vcpu, struct kc_error *err)
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
	if (kc_vcpu_check_any_thread(vcpu, err))
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
	if (kc_vcpu_check_any_thread(vcpu, err))
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
