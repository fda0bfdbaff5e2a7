// SPDX-License-Identifier: MIT
#include "instructions.h"

#include "arch/arch.h"
#include "cleanup.h"
#include "vcpu.h"
#include "vm.h"

/* How far the overflow of a counter may be late, in instructions; what is left is stepped. */
#define SKID 2048

static bool counter_counts(struct kc_vcpu *vcpu)
{
	return vcpu->time_source == KC_TIME_PERF;
}

/* Of the system's budget; an instruction that is stepped takes one from it beforehand, as a ticket. */
static bool holds_ticket(struct kc_vcpu *vcpu)
{
	/* One of an earlier stop is none of this one's. */
	return vcpu->has_ticket && vcpu->ticket_stop == vcpu->vm->inst_stop_number;
}

/* Needs the VM's lock. */
static void drop_ticket(struct kc_vcpu *vcpu, bool unused)
{
	struct kc_vm *vm = vcpu->vm;
	uint64_t budget = atomic_load(&vm->inst_budget);

	if (!vcpu->has_ticket)
		return;
	if (unused && budget != KC_NEVER && holds_ticket(vcpu))
		atomic_store(&vm->inst_budget, budget + 1);
	vcpu->has_ticket = false;
	vm->inst_tickets--;
}

/* Instructions left to the nearest stop; KC_NEVER: none is set. */
static uint64_t left(struct kc_vcpu *vcpu)
{
	uint64_t insts = atomic_load_explicit(&vcpu->insts, memory_order_relaxed);
	uint64_t budget = atomic_load_explicit(&vcpu->vm->inst_budget, memory_order_relaxed);
	uint64_t own = KC_NEVER;

	if (vcpu->inst_stop != KC_NEVER)
		own = vcpu->inst_stop > insts ? vcpu->inst_stop - insts : 0;
	if (vcpu->has_ticket && budget != KC_NEVER)
		budget++;
	return own < budget ? own : budget;
}

void kc_vcpu_add_insts(struct kc_vcpu *vcpu, uint64_t n)
{
	uint64_t insts = atomic_load_explicit(&vcpu->insts, memory_order_relaxed);
	struct kc_vm *vm = vcpu->vm;
	uint64_t budget;

	atomic_store_explicit(&vcpu->insts, insts + n, memory_order_relaxed);
	kc_stat_add(&vcpu->stats, KC_STAT_insts, n);
	atomic_fetch_add_explicit(&vm->insts, n, memory_order_relaxed);
	if (__builtin_expect(atomic_load_explicit(&vm->inst_budget, memory_order_relaxed) ==
					     KC_NEVER &&
				     !vcpu->has_ticket,
			     1))
		return;
	kc_hold(&vm->lock);
	budget = atomic_load(&vm->inst_budget);
	if (n && holds_ticket(vcpu))
		n--; /* it is paid for */
	if (budget != KC_NEVER)
		atomic_store(&vm->inst_budget, budget > n ? budget - n : 0);
	drop_ticket(vcpu, false);
}

/* The system's stop is reached: no budget, and nobody who is in the middle of its last instruction. */
static bool system_reached(struct kc_vm *vm)
{
	return !atomic_load(&vm->inst_budget) && !vm->inst_tickets;
}

/* The stop is reached: nobody else is to stop at it again, but for the others when it is the system's. */
static void reached(struct kc_vcpu *vcpu)
{
	struct kc_vm *vm = vcpu->vm;

	vcpu->insts_reached = true;
	vcpu->stepping = false;
	if (vcpu->inst_stop <= atomic_load(&vcpu->insts))
		vcpu->inst_stop = KC_NEVER;
	kc_hold(&vm->lock);
	drop_ticket(vcpu, true);
	if (!system_reached(vm))
		return;
	atomic_store(&vm->inst_budget, KC_NEVER);
	for (size_t i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpus[i] != vcpu)
			kc_kick_with(vm->vcpus[i], KC_REQUEST_INSTS);
}

/*
 * Take one instruction of the system's budget, so that the vCPUs together never overshoot. 1: it is ours, or
 * none is needed; 0: there is none, the stop is reached; -1: not yet known, others hold the last ones.
 */
static int take_ticket(struct kc_vcpu *vcpu)
{
	struct kc_vm *vm = vcpu->vm;
	uint64_t budget;

	kc_hold(&vm->lock);
	if (holds_ticket(vcpu))
		return 1;
	drop_ticket(vcpu, true);
	budget = atomic_load(&vm->inst_budget);
	if (budget == KC_NEVER)
		return 1;
	if (!budget)
		return system_reached(vm) ? 0 : -1;
	atomic_store(&vm->inst_budget, budget - 1);
	vm->inst_tickets++;
	vcpu->has_ticket = true;
	vcpu->ticket_stop = vm->inst_stop_number;
	return 1;
}

/* Nobody waits for the ticket of a vCPU that is not in a run: its instruction is finished when it runs again. */
static void count_ticket(struct kc_vcpu *vcpu, int change)
{
	struct kc_vm *vm = vcpu->vm;

	if (!vcpu->has_ticket)
		return;
	kc_hold(&vm->lock);
	vm->inst_tickets = (unsigned int)((int)vm->inst_tickets + change);
}

void kc_insts_begin(struct kc_vcpu *vcpu)
{
	count_ticket(vcpu, 1);
}

void kc_insts_end(struct kc_vcpu *vcpu)
{
	count_ticket(vcpu, -1);
}

/* A vCPU that holds one of the last instructions may give it back. 1: look at everything anew. */
static int wait_for_others(struct kc_vcpu *vcpu, struct kc_error *err)
{
	kc_kick_wait(vcpu, 200000);
	return kc_kick_host_signals(vcpu, err) ? -1 : 1;
}

static int run_freely(struct kc_vcpu *vcpu, struct kc_error *err)
{
	vcpu->stepping = vcpu->step_open = false;
	if (__builtin_expect(vcpu->has_ticket, 0)) {
		kc_hold(&vcpu->vm->lock);
		drop_ticket(vcpu, true);
	}
	return vcpu->counters.period ? kc_counters_set_period(&vcpu->counters, 0, err) : 0;
}

/* Of a system's stop each vCPU takes its share, and comes back for the rest. */
static int run_until_overflow(struct kc_vcpu *vcpu, uint64_t rest, struct kc_error *err)
{
	size_t vcpus;

	pthread_mutex_lock(&vcpu->vm->lock);
	vcpus = vcpu->vm->vcpu_count;
	pthread_mutex_unlock(&vcpu->vm->lock);
	vcpu->kick.expected = true;
	return kc_counters_set_period(&vcpu->counters, (rest - SKID) / (vcpus ? vcpus : 1) + 1,
				      err);
}

static int begin_step(struct kc_vcpu *vcpu, struct kc_error *err)
{
	int ticket;

	if (counter_counts(vcpu) && kc_counters_set_period(&vcpu->counters, 0, err))
		return -1;
	/* An instruction whose access is not delivered yet is finished first: it was counted on. */
	if (!vcpu->step_open) {
		ticket = take_ticket(vcpu);
		if (ticket < 0)
			return wait_for_others(vcpu, err);
		if (!ticket) {
			reached(vcpu);
			return 0;
		}
		vcpu->step_open = true;
		vcpu->step_pc = kc_arch_pc(vcpu);
	}
	return 0;
}

int kc_insts_before_entry(struct kc_vcpu *vcpu, struct kc_error *err)
{
	uint64_t rest = left(vcpu);
	bool steps = vcpu->steps_left != KC_NEVER;
	int result = 0;

	if (rest == KC_NEVER && !steps) {
		result = run_freely(vcpu, err);
	} else if (steps && !vcpu->steps_left) {
		vcpu->insts_reached = true;
		return 0;
	} else if (!vcpu->step_open && vcpu->inst_stop <= atomic_load(&vcpu->insts)) {
		reached(vcpu);
		return 0;
	} else {
		vcpu->stepping = steps || !counter_counts(vcpu) || rest <= SKID;
		/* The instruction whose access was serviced just now began before the counting did. */
		vcpu->half_first = vcpu->stepping && !vcpu->step_open &&
				   vcpu->status == KC_COMPLETION;
		if (vcpu->half_first)
			vcpu->stepping = false;
		else
			result = vcpu->stepping ? begin_step(vcpu, err)
						: run_until_overflow(vcpu, rest, err);
	}
	if (__builtin_expect(vcpu->stepping || (vcpu->debug_control & KVM_GUESTDBG_SINGLESTEP) ||
				     vcpu->stale_halt,
			     0))
		vcpu->entry_pc = kc_arch_pc(vcpu);
	return result;
}

static void step_not_done(struct kc_vcpu *vcpu)
{
	vcpu->step_open = false;
	if (!vcpu->has_ticket)
		return;
	kc_hold(&vcpu->vm->lock);
	drop_ticket(vcpu, true);
}

static void step_done(struct kc_vcpu *vcpu)
{
	vcpu->step_open = false;
	if (vcpu->steps_left != KC_NEVER)
		vcpu->steps_left--;
	/* A counter of something else than instructions has counted by itself. */
	if (!counter_counts(vcpu) || vcpu->counters.hardware)
		kc_vcpu_add_insts(vcpu, 1);
	else
		step_not_done(vcpu);
}

/*
 * KVM's instruction emulator reports a halt that is stepped as a step, and the halt when it next executes an
 * instruction that is not stepped, behind that one. The step is the halt; what comes later is none.
 */
static void sort_halts(struct kc_vcpu *vcpu, uint64_t ticks)
{
	struct kvm_run *run = vcpu->run;

	if (run->exit_reason == KVM_EXIT_DEBUG && ticks && kc_arch_is_single_step(vcpu) &&
	    kc_arch_lost_halt(vcpu, vcpu->entry_pc)) {
		vcpu->record->reason = run->exit_reason = KVM_EXIT_HLT;
		vcpu->stale_halt = true;
	} else if (run->exit_reason == KVM_EXIT_HLT && vcpu->stale_halt) {
		vcpu->stale_halt = false;
		if (kc_arch_halt_at(vcpu, vcpu->entry_pc))
			return;
		vcpu->record->reason = run->exit_reason = KVM_EXIT_INTR;
		vcpu->status = KC_RUNNING;
	}
}

void kc_insts_after_step(struct kc_vcpu *vcpu, uint64_t ticks)
{
	struct kvm_run *run = vcpu->run;
	bool moved;

	sort_halts(vcpu, ticks);
	if (!vcpu->stepping) {
		if (ticks && !counter_counts(vcpu))
			vcpu->insts_known = false;
		return;
	}
	if (!vcpu->step_open)
		return;
	moved = kc_arch_pc(vcpu) != vcpu->step_pc;
	switch (run->exit_reason) {
	case KVM_EXIT_DEBUG:
		if (!kc_arch_is_single_step(vcpu)) {
			step_not_done(
				vcpu); /* a breakpoint of the user's, before the instruction */
			break;
		}
		vcpu->status = KC_RUNNING;
		/* A string instruction that repeats is one, however often it traps. */
		if (!moved && kc_arch_at_repeat(vcpu))
			step_not_done(vcpu);
		else
			step_done(vcpu);
		break;
	case KVM_EXIT_HLT:
		step_done(vcpu);
		break;
	case KVM_EXIT_IO:
	case KVM_EXIT_MMIO:
		break; /* done when the access is delivered, by a half entry */
	case KVM_EXIT_INTR:
		/* Delivered without a trap of its own; where it did not move, it repeats or did not begin. */
		if (ticks == 0 && moved)
			step_done(vcpu);
		else
			step_not_done(vcpu);
		break;
	default:
		step_not_done(vcpu);
	}
}

int kc_vcpu_schedule_inst_stop(struct kc_vcpu *vcpu, uint64_t insts, struct kc_error *err)
{
	uint64_t now = atomic_load(&vcpu->insts);

	if (kc_vcpu_check(vcpu, err))
		return -1;
	if (!insts || insts >= KC_NEVER - now)
		return kc_fail(err, KC_ERR_VALUE,
			       "an instruction stop is at least 1 instruction away");
	vcpu->inst_stop = now + insts;
	vcpu->plain = false;
	return 0;
}
