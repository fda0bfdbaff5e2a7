/* SPDX-License-Identifier: MIT */
/*
 * Counters of the guest (V9, V23). By default hardware cycles and instructions in one group, the host excluded.
 * Another event can be chosen, which then serves as both: time is scaled from it, and a sampling stop counts it.
 */
#ifndef KC_COUNTERS_H
#define KC_COUNTERS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "errors.h"

struct kc_counters {
	uint32_t type; /* of the leader; perf_event_open(2) */
	uint64_t config;
	bool hardware; /* the leader is hardware cycles, with instructions beside it */
	bool guest_only; /* the host is excluded by the counter itself */
	int leader, insts; /* file descriptors, -1: not open */
	pid_t thread; /* attached to it; 0: to none */
	uint64_t last_cycles, last_insts; /* at the last read */
	uint64_t period; /* the sampling period whose overflow sends the kick; 0: none */
};

void kc_counters_init(struct kc_counters *counters);
void kc_counters_use(struct kc_counters *counters, uint32_t type, uint64_t config);
/* 0 if this host lets the calling thread count, else perf_event_open's error number. */
int kc_counters_probe(const struct kc_counters *counters);
int kc_counters_attach(struct kc_counters *counters, pid_t thread, struct kc_error *err);
void kc_counters_detach(struct kc_counters *counters);
/* What was counted since the last read. */
int kc_counters_read(struct kc_counters *counters, uint64_t *cycles, uint64_t *insts,
		     struct kc_error *err);
/* Have the overflow after `period` counts kick; 0: none. The same period does nothing (V23). */
int kc_counters_set_period(struct kc_counters *counters, uint64_t period, struct kc_error *err);

#endif
