// SPDX-License-Identifier: MIT
#include "instructions.h"

#include "arch/arch.h"
#include "vcpu.h"
#include "vm.h"

/* How far the overflow of a counter may be late, in instructions; what is left is stepped. */
#define SKID 2048

static bool counter_counts(struct kc_vcpu *vcpu)
{
	return vcpu->time_source == KC_TIME_PERF;
}

/* Instructions left to the nearest stop; KC_NEVER: none is set. */
static uint64_t left(struct kc_vcpu *vcpu)
{
	uint64_t insts = atomic_load_explicit(&vcpu->insts, memory_order_relaxed);
	uint64_t budget = atomic_load_explicit(&vcpu->vm->inst_budget, memory_order_relaxed);
	uint64_t own = KC_NEVER;

	if (vcpu->inst_stop != KC_NEVER)
		own = vcpu->inst_stop > insts ? vcpu->inst_stop - insts : 0;
	if (vcpu->has_ticket)
		budget++; /* ours is taken from it already */
	return own < budget ? own : budget;
}

/* Take one instruction of the system's budget, so that the vCPUs together never overshoot. */
static bool take_ticket(struct kc_vcpu *vcpu)
{
	uint64_t budget = atomic_load(&vcpu->vm->inst_budget);

	do {
		if (budget == KC_NEVER || vcpu->has_ticket)
			return true;
		if (!budget)
			return false;
	} while (!atomic_compare_exchange_weak(&vcpu->vm->inst_budget, &budget, budget - 1));
	vcpu->has_ticket = true;
	return true;
}

static void give_ticket_back(struct kc_vcpu *vcpu)
{
	uint64_t budget = atomic_load(&vcpu->vm->inst_budget);

	if (!vcpu->has_ticket)
		return;
	vcpu->has_ticket = false;
	while (budget != KC_NEVER &&
	       !atomic_compare_exchange_weak(&vcpu->vm->inst_budget, &budget, budget + 1))
		;
}

static void spend(struct kc_vm *vm, uint64_t n)
{
	uint64_t budget = atomic_load(&vm->inst_budget);

	while (budget != KC_NEVER &&
	       !atomic_compare_exchange_weak(&vm->inst_budget, &budget, budget > n ? budget - n : 0))
		;
}

void kc_vcpu_add_insts(struct kc_vcpu *vcpu, uint64_t n)
{
	uint64_t insts = atomic_load_explicit(&vcpu->insts, memory_order_relaxed);

	atomic_store_explicit(&vcpu->insts, insts + n, memory_order_relaxed);
	kc_stat_add(&vcpu->stats, KC_STAT_insts, n);
	atomic_fetch_add_explicit(&vcpu->vm->insts, n, memory_order_relaxed);
	if (!vcpu->has_ticket)
		spend(vcpu->vm, n);
	vcpu->has_ticket = false;
}

/* The stop is reached: nobody else is to stop at it again, but for the others when it is the system's. */
static void reached(struct kc_vcpu *vcpu)
{
	struct kc_vm *vm = vcpu->vm;
	uint64_t none_left = 0;

	give_ticket_back(vcpu);
	vcpu->insts_reached = true;
	vcpu->stepping = false;
	if (vcpu->inst_stop <= atomic_load(&vcpu->insts))
		vcpu->inst_stop = KC_NEVER;
	if (atomic_compare_exchange_strong(&vm->inst_budget, &none_left, KC_NEVER)) {
		pthread_mutex_lock(&vm->lock);
		for (size_t i = 0; i < vm->vcpu_count; i++)
			if (vm->vcpus[i] != vcpu)
				kc_kick_with(vm->vcpus[i], KC_REQUEST_INSTS);
		pthread_mutex_unlock(&vm->lock);
	}
}

int kc_insts_before_entry(struct kc_vcpu *vcpu, struct kc_error *err)
{
	uint64_t rest = left(vcpu);
	bool steps = vcpu->steps_left != KC_NEVER;

	if (__builtin_expect(rest == KC_NEVER && !steps, 1)) {
		vcpu->stepping = false;
		return vcpu->counters.period ? kc_counters_set_period(&vcpu->counters, 0, err) : 0;
	}
	if (steps && !vcpu->steps_left) {
		vcpu->insts_reached = true;
		return 0;
	}
	/* An instruction whose access is not delivered yet is finished first: it was counted on. */
	if (!rest && !vcpu->step_open) {
		reached(vcpu);
		return 0;
	}
	vcpu->stepping = steps || !counter_counts(vcpu) || rest <= SKID;
	if (!vcpu->stepping) {
		vcpu->kick.expected = true;
		/* Of a system's stop each vCPU takes its share, and comes back for the rest. */
		return kc_counters_set_period(&vcpu->counters,
					      (rest - SKID) / (vcpu->vm->vcpu_count ? vcpu->vm->vcpu_count : 1) + 1,
					      err);
	}
	if (counter_counts(vcpu) && kc_counters_set_period(&vcpu->counters, 0, err))
		return -1;
	if (vcpu->step_open)
		return 0;
	if (!take_ticket(vcpu)) {
		reached(vcpu);
		return 0;
	}
	vcpu->step_open = true;
	vcpu->step_pc = kc_arch_pc(vcpu);
	return 0;
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
		give_ticket_back(vcpu);
}

static void step_not_done(struct kc_vcpu *vcpu)
{
	vcpu->step_open = false;
	give_ticket_back(vcpu);
}

void kc_insts_after_entry(struct kc_vcpu *vcpu, uint64_t ticks)
{
	struct kvm_run *run = vcpu->run;
	bool moved;

	if (__builtin_expect(!vcpu->stepping, 1)) {
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
			step_not_done(vcpu); /* a breakpoint of the user's, before the instruction */
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
		return kc_fail(err, KC_ERR_VALUE, "an instruction stop is at least 1 instruction away");
	vcpu->inst_stop = now + insts;
	return 0;
}
