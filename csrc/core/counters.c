// SPDX-License-Identifier: MIT
#include "counters.h"

#include <errno.h>
#include <linux/perf_event.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kick.h"
#include "perf.h"

void kc_counters_init(struct kc_counters *counters)
{
	memset(counters, 0, sizeof(*counters));
	counters->leader = counters->insts = -1;
	kc_counters_use(counters, PERF_TYPE_HARDWARE, PERF_COUNT_HW_CPU_CYCLES);
}

void kc_counters_use(struct kc_counters *counters, uint32_t type, uint64_t config)
{
	counters->type = type;
	counters->config = config;
	counters->hardware = type == PERF_TYPE_HARDWARE && config == PERF_COUNT_HW_CPU_CYCLES;
	counters->guest_only = type == PERF_TYPE_HARDWARE || type == PERF_TYPE_RAW;
}

static int open_leader(const struct kc_counters *counters, pid_t thread, uint64_t period)
{
	struct kc_perf_event event = {
		.type = counters->type,
		.config = counters->config,
		.period = counters->hardware ? 0 : period,
		.group = -1,
		.guest_only = counters->guest_only,
	};

	return kc_perf_open(&event, thread);
}

static int open_insts(const struct kc_counters *counters, pid_t thread, uint64_t period)
{
	struct kc_perf_event event = {
		.type = PERF_TYPE_HARDWARE,
		.config = PERF_COUNT_HW_INSTRUCTIONS,
		.period = period,
		.group = counters->leader,
		.guest_only = true,
	};

	return kc_perf_open(&event, thread);
}

int kc_counters_probe(const struct kc_counters *counters)
{
	struct kc_counters trial = *counters;
	int error = 0, insts = -1;

	trial.leader = open_leader(counters, 0, 0);
	if (trial.leader < 0)
		return errno;
	if (trial.hardware) {
		insts = open_insts(&trial, 0, 0);
		error = insts < 0 ? errno : 0;
	}
	if (insts >= 0)
		close(insts);
	close(trial.leader);
	return error;
}

int kc_counters_attach(struct kc_counters *counters, pid_t thread, struct kc_error *err)
{
	int sampled;

	kc_counters_detach(counters);
	counters->leader = open_leader(counters, thread, counters->period);
	if (counters->leader < 0)
		return kc_perf_fail(errno, err);
	if (counters->hardware) {
		counters->insts = open_insts(counters, thread, counters->period);
		if (counters->insts < 0) {
			kc_perf_fail(errno, err);
			kc_counters_detach(counters);
			return -1;
		}
	}
	sampled = counters->hardware ? counters->insts : counters->leader;
	if (counters->period && kc_perf_signal(sampled, thread, kc_kick_signal())) {
		kc_fail_os(err, "fcntl of a counter");
		kc_counters_detach(counters);
		return -1;
	}
	counters->thread = thread;
	counters->last_cycles = counters->last_insts = 0;
	return 0;
}

void kc_counters_detach(struct kc_counters *counters)
{
	if (counters->insts >= 0)
		close(counters->insts);
	if (counters->leader >= 0)
		close(counters->leader);
	counters->leader = counters->insts = -1;
	counters->thread = 0;
}

int kc_counters_read(struct kc_counters *counters, uint64_t *cycles, uint64_t *insts,
		     struct kc_error *err)
{
	/* PERF_FORMAT_GROUP: the number of values, then the leader's and the others' */
	uint64_t values[3] = { 0 };
	ssize_t got = read(counters->leader, values, sizeof(values));
	uint64_t now_insts;

	if (got < 0)
		return kc_fail_os(err, "reading the counters");
	if (got < (ssize_t)(2 * sizeof(*values)))
		return kc_fail(
			err, KC_ERR_UNSUPPORTED,
			"the counters are not running: another user took them away (a watchdog, "
			"another profiler); use time_source=\"tsc\"");
	now_insts = counters->hardware ? values[2] : values[1];
	*cycles = values[1] - counters->last_cycles;
	*insts = now_insts - counters->last_insts;
	counters->last_cycles = values[1];
	counters->last_insts = now_insts;
	return 0;
}

int kc_counters_set_period(struct kc_counters *counters, uint64_t period, struct kc_error *err)
{
	if (period == counters->period)
		return 0;
	counters->period = period;
	return counters->thread ? kc_counters_attach(counters, counters->thread, err) : 0;
}
