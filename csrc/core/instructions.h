/* SPDX-License-Identifier: MIT */
/*
 * Counting instructions, stopping at a count exactly (V23), single steps. With a hardware counter the guest
 * runs freely until shortly before the stop; the rest, or without a counter all of it, is single-stepped.
 */
#ifndef KC_INSTRUCTIONS_H
#define KC_INSTRUCTIONS_H

#include <stdint.h>

#include "errors.h"

struct kc_vcpu;

/* Bracket a run. */
void kc_insts_begin(struct kc_vcpu *vcpu);
void kc_insts_end(struct kc_vcpu *vcpu);
/*
 * Sets up the next entry: a single step, a sampling period, or nothing; insts_reached if the stop is here. 1: not
 * now, come again.
 */
int kc_insts_before_entry(struct kc_vcpu *vcpu, struct kc_error *err);
/* Counts what the entry was, if it was a step. ticks: its limit. */
void kc_insts_after_entry(struct kc_vcpu *vcpu, uint64_t ticks);

#endif
