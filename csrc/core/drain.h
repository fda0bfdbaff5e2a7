/* SPDX-License-Identifier: MIT */
/* Stopping in a consistent state, and handing over (V19, V20). */
#ifndef KC_DRAIN_H
#define KC_DRAIN_H

#include <stdint.h>

#include "errors.h"

struct kc_vcpu;
struct kc_vm;

/* How long the next entry of a draining vCPU may be: a half entry, or a little to deliver an event. */
int kc_drain_limit(struct kc_vcpu *vcpu, uint64_t *limit, struct kc_error *err);
/* After a step while draining: try again; the user is told once. */
int kc_drain_again(struct kc_vcpu *vcpu, struct kc_error *err);
/* V6 */
int kc_memory_mode_check(struct kc_vm *vm, struct kc_error *err);

#endif
