/* SPDX-License-Identifier: MIT */
/*
 * Counting instructions, stopping at a count exactly (V23), single steps. With a hardware counter the guest
 * runs freely until shortly before the stop; the rest, or without a counter all of it, is single-stepped.
 */
#ifndef KC_INSTRUCTIONS_H
#define KC_INSTRUCTIONS_H

#include <stdint.h>

#include "errors.h"
#include "vcpu.h"
#include "vm.h"

/* Bracket a run. */
void kc_insts_begin(struct kc_vcpu *vcpu);
void kc_insts_end(struct kc_vcpu *vcpu);
/* Whether anything is to be set up before an entry, or to be taken back. */
static inline bool kc_insts_are_watched(const struct kc_vcpu *vcpu)
{
	return vcpu->inst_stop != KC_NEVER || vcpu->steps_left != KC_NEVER || vcpu->stepping ||
	       vcpu->step_open || vcpu->has_ticket || vcpu->counters.period ||
	       (vcpu->debug_control & KVM_GUESTDBG_SINGLESTEP) || vcpu->stale_halt ||
	       atomic_load_explicit(&vcpu->vm->inst_budget, memory_order_relaxed) != KC_NEVER;
}

/*
 * Sets up the next entry: a single step, a sampling period, or nothing; insts_reached if the stop is here. 1: not
 * now, come again.
 */
int kc_insts_before_entry(struct kc_vcpu *vcpu, struct kc_error *err);
/* Counts what the entry was, after a step or another debug exit. ticks: its limit. */
void kc_insts_after_step(struct kc_vcpu *vcpu, uint64_t ticks);

#endif
