/* SPDX-License-Identifier: MIT */
/* Statistics (V14): one writer a counter, readable by anyone; a reset remembers where it was. */
#ifndef KC_STATS_H
#define KC_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* name, gem5's name, what it counts */
#define KC_STATS(X)                                                                                \
	X(insts, "committedInsts", "Instructions the guest committed")                             \
	X(cycles, "numCycles", "Cycles of the CPU's clock, idle ones included")                    \
	X(ticks, "ticks", "Ticks spent in the guest")                                              \
	X(exits, "numVMExits", "Entries into the guest that came back")                            \
	X(half_entries, "numVMHalfEntries", "Entries that only delivered a finished access")       \
	X(exit_signal, "numExitSignal", "Exits because of a kick, a timer or another signal")      \
	X(mmio, "numMMIO", "Exits for memory-mapped I/O")                                          \
	X(coalesced_mmio, "numCoalescedMMIO", "Writes that came by the coalesced ring")            \
	X(io, "numIO", "Exits for port I/O")                                                       \
	X(halts, "numHalt", "Exits for a halt")                                                    \
	X(interrupts, "numInterrupts", "Interrupts delivered to the CPU")                          \
	X(hypercalls, "numHypercalls", "Exits for a hypercall")                                    \
	X(unassigned, "numUnassigned", "Accesses to an address where nobody is")

enum kc_stat {
#define X(name, gem5, text) KC_STAT_##name,
	KC_STATS(X)
#undef X
		KC_STAT_COUNT
};

struct kc_stat_info {
	const char *name, *gem5_name, *description;
};
extern const struct kc_stat_info kc_stat_info[KC_STAT_COUNT];

struct kc_stats {
	_Atomic uint64_t value[KC_STAT_COUNT];
	_Atomic uint64_t base[KC_STAT_COUNT]; /* the values at the last reset */
};

/* By the one thread that owns the counter. */
static inline void kc_stat_add(struct kc_stats *stats, enum kc_stat stat, uint64_t n)
{
	_Atomic uint64_t *value = &stats->value[stat];

	atomic_store_explicit(value, atomic_load_explicit(value, memory_order_relaxed) + n,
			      memory_order_relaxed);
}

static inline uint64_t kc_stat_read(struct kc_stats *stats, enum kc_stat stat)
{
	return atomic_load_explicit(&stats->value[stat], memory_order_relaxed) -
	       atomic_load_explicit(&stats->base[stat], memory_order_relaxed);
}

void kc_stats_reset(struct kc_stats *stats);

#endif
