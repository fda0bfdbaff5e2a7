/* SPDX-License-Identifier: MIT */
/* Seeing what happens (V25): categories that are switched at run time, and the ring of last exits. */
#ifndef KC_TRACE_H
#define KC_TRACE_H

#include <stdatomic.h>
#include <stdint.h>

#define KC_TRACE_FLAGS(X)                                                                          \
	X(Kvm) X(KvmContext) X(KvmRun) X(KvmIO) X(KvmInt) X(KvmTimer) X(Drain) X(Checkpoint)

enum kc_trace_flag {
#define X(name) KC_TRACE_##name,
	KC_TRACE_FLAGS(X)
#undef X
		KC_TRACE_COUNT
};
extern const char *const kc_trace_names[KC_TRACE_COUNT];

struct kc_trace {
	_Atomic uint32_t mask;
	void (*emit)(void *opaque, enum kc_trace_flag flag, uint64_t tick, const char *cpu,
		     const char *message);
	void *opaque;
};

struct kc_vcpu;
void kc_trace_emit(struct kc_vcpu *vcpu, enum kc_trace_flag flag, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

#define kc_trace(v, flag, ...)                                                                     \
	do {                                                                                       \
		if (__builtin_expect(atomic_load_explicit(&(v)->vm->trace->mask,                   \
							  memory_order_relaxed) &                  \
					     (1u << KC_TRACE_##flag),                              \
				     0))                                                           \
			kc_trace_emit(v, KC_TRACE_##flag, __VA_ARGS__);                            \
	} while (0)

#define KC_LAST_EXITS 64

struct kc_exit_record {
	uint64_t tick, address, data, latency;
	uint32_t reason;
	int32_t size; /* negative: the guest read */
};

struct kc_exit_ring {
	uint64_t total; /* records ever written; the last is at (total - 1) % KC_LAST_EXITS */
	struct kc_exit_record records[KC_LAST_EXITS];
};

static inline struct kc_exit_record *kc_exit_ring_next(struct kc_exit_ring *ring)
{
	return &ring->records[ring->total++ % KC_LAST_EXITS];
}

#endif
