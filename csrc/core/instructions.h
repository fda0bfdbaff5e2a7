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

/* Sets up the next entry: a single step, a sampling period, or nothing; insts_reached if the stop is here. */
int kc_insts_before_entry(struct kc_vcpu *vcpu, struct kc_error *err);
/* Counts what the entry was, if it was a step. ticks: its limit. */
void kc_insts_after_entry(struct kc_vcpu *vcpu, uint64_t ticks);

#endif
