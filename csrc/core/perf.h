/* SPDX-License-Identifier: MIT */
/* perf_event_open(2), as counters and the overflow timer use it; and why a host refuses it. */
#ifndef KC_PERF_H
#define KC_PERF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "errors.h"

struct kc_perf_event {
	uint32_t type;
	uint64_t config;
	uint64_t period; /* 0: only count */
	int group; /* the leader's fd; -1: a leader itself */
	bool disabled;
	bool guest_only; /* host excluded */
};

/* The fd, or -1 and errno. */
int kc_perf_open(const struct kc_perf_event *event, pid_t thread);
/* Have overflows send the signal to the thread: 0, or -1 and errno. */
int kc_perf_signal(int fd, pid_t thread, int signal);
/* What perf_event_open's error means on this host, and what to do about it. */
void kc_perf_explain(int error, char *text, size_t size);
int kc_perf_fail(int error, struct kc_error *err);

#endif
