/* SPDX-License-Identifier: MIT */
/*
 * Run timers (V3): bound an entry into the guest by sending the kick signal to the thread that armed them.
 * Two kinds behind one interface; times are in nanoseconds of the host here, the vCPU scales them (V2).
 */
#ifndef KC_TIMER_H
#define KC_TIMER_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#include "errors.h"

enum kc_timer_kind { KC_TIMER_POSIX, KC_TIMER_PERF };

struct kc_timer {
	enum kc_timer_kind kind;
	bool attached; /* to the thread that runs the vCPU */
	bool armed; /* since it was last disarmed; it may have fired */
	timer_t posix;
	int perf_fd;
	uint32_t perf_type;
	uint64_t perf_config;
	double perf_frequency; /* events a second, as far as arming needs it */
	uint64_t resolution_ns; /* shorter requests are lengthened to it */
};

void kc_timer_init(struct kc_timer *timer);
void kc_timer_use_perf(struct kc_timer *timer, uint32_t type, uint64_t config, double frequency);
/* For the calling thread; before arm. */
int kc_timer_attach(struct kc_timer *timer, struct kc_error *err);
void kc_timer_detach(struct kc_timer *timer);
/* In ns from now; a later arm replaces an earlier one. */
int kc_timer_arm(struct kc_timer *timer, uint64_t ns, struct kc_error *err);
int kc_timer_disarm(struct kc_timer *timer, struct kc_error *err);

#endif
