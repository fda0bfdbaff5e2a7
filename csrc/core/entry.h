/* SPDX-License-Identifier: MIT */
/* One entry into the guest (V8), and the adding up after it (V9). */
#ifndef KC_ENTRY_H
#define KC_ENTRY_H

#include <stdint.h>

#include "errors.h"

struct kc_vcpu;

/* Bracket a run on the calling thread: signals (kick.h), timer and counters follow it. */
int kc_entry_begin(struct kc_vcpu *vcpu, struct kc_error *err);
void kc_entry_end(struct kc_vcpu *vcpu);
/*
 * ticks: 0 a half entry, KC_NEVER no limit. Between begin and end.
 * -1 with vcpu->exits.total unchanged: it did not take place. Else its exit is to be serviced, whatever failed.
 */
int kc_entry(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed, struct kc_error *err);
/*
 * The same for a vCPU whose time is the host clock's and that has neither steps nor breakpoints to be told to KVM,
 * on a thread that does not hold the device lock; not a half entry.
 */
int kc_entry_plain(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed, struct kc_error *err);
/* The same of a half entry, for a VM that coalesces nothing; also where begin was not called. */
int kc_entry_half(struct kc_vcpu *vcpu, uint64_t *passed, struct kc_error *err);

#endif
