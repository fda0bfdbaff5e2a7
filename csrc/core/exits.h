/* SPDX-License-Identifier: MIT */
/* Servicing exits: what each of them does (vcpu.md, Exits). */
#ifndef KC_EXITS_H
#define KC_EXITS_H

#include <stdint.h>

#include "errors.h"
#include "vcpu.h"
#include "vm.h"

/* Service the last exit: sets the next state and the latency in ticks. */
int kc_exit_service(struct kc_vcpu *vcpu, uint64_t *latency, struct kc_error *err);
/* The same for a write to a port, whose device has .brief_writes. False: it is something else, nothing was done. */
bool kc_exit_service_briefly(struct kc_vcpu *vcpu);
/* Whether there are coalesced writes to be delivered. */
static inline bool kc_exit_ring_filled(const struct kc_vcpu *vcpu)
{
	/* The ring is in a page of its own: where nothing coalesces, an exit does not touch it. */
	return atomic_load_explicit(&vcpu->vm->coalesces, memory_order_relaxed) && vcpu->ring &&
	       __atomic_load_n(&vcpu->ring->last, __ATOMIC_ACQUIRE) !=
		       __atomic_load_n(&vcpu->ring->first, __ATOMIC_RELAXED);
}

/* Deliver what the coalesced ring holds (V15); adds to *latency. */
int kc_exit_drain_ring(struct kc_vcpu *vcpu, uint64_t *latency, struct kc_error *err);
/* Note the exit in the ring of last exits (V25). */
void kc_exit_note(struct kc_vcpu *vcpu, uint64_t tick);
/* KVM_EXIT_... without the prefix; "?" if unknown. */
const char *kc_exit_name(uint32_t reason);

#endif
