// SPDX-License-Identifier: MIT
/* V1 to V3, V9: ticks, the two knobs, both run timers, the time sources. */
#include "guest.h"

#include <linux/perf_event.h>
#include <signal.h>

static struct guest guest;

static void kick_set(sigset_t *set)
{
	sigemptyset(set);
	sigaddset(set, kc_kick_signal());
}

static void test_timer(struct kc_timer *timer)
{
	struct timespec limit = { .tv_sec = 10 }, little = { .tv_nsec = 30000000 };
	sigset_t set, before;

	kick_set(&set);
	check(!pthread_sigmask(SIG_BLOCK, &set, &before));
	check_ok(kc_timer_attach(timer, &err));
	for (int i = 1; i <= 20; i++) {
		uint64_t ns = (uint64_t)i * 100000, begin = now_ns();

		check_ok(kc_timer_arm(timer, ns, &err));
		if (timer->kind == KC_TIMER_PERF) /* the event counts while the thread computes */
			while (now_ns() - begin < ns + 10000000)
				;
		check(sigtimedwait(&set, NULL, &limit) == kc_kick_signal());
		if (timer->kind == KC_TIMER_POSIX)
			check(now_ns() - begin >= ns);
	}
	/* Once each; a later one replaces an earlier one; disarmed, none comes; 0 is lengthened. */
	check_ok(kc_timer_arm(timer, 1000000, &err) || kc_timer_arm(timer, 3000000000, &err));
	check(sigtimedwait(&set, NULL, &little) == -1);
	check_ok(kc_timer_disarm(timer, &err) || kc_timer_disarm(timer, &err));
	check_ok(kc_timer_arm(timer, UINT64_MAX, &err) || kc_timer_disarm(timer, &err));
	check_ok(kc_timer_arm(timer, 0, &err));
	for (uint64_t begin = now_ns(); now_ns() - begin < 10000000;)
		;
	check(sigtimedwait(&set, NULL, &limit) == kc_kick_signal());
	kc_timer_detach(timer);
	kc_timer_detach(timer);
	check(sigtimedwait(&set, NULL, &little) == -1);
	check(!pthread_sigmask(SIG_SETMASK, &before, NULL));
}

static void test_timers(void)
{
	struct kc_timer timer;
	struct kc_counters counters;

	kc_timer_init(&timer);
	check(timer.resolution_ns > 0);
	test_timer(&timer);
	kc_counters_init(&counters);
	kc_counters_use(&counters, PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK);
	if (kc_counters_probe(&counters))
		return;
	kc_timer_init(&timer);
	kc_timer_use_perf(&timer, PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK, 1e9);
	test_timer(&timer);
}

static void test_counters(void)
{
	struct kc_counters counters;
	uint64_t cycles, insts, begin;

	kc_counters_init(&counters);
	kc_counters_use(&counters, PERF_TYPE_SOFTWARE, PERF_COUNT_SW_TASK_CLOCK);
	if (kc_counters_probe(&counters))
		return;
	check_ok(kc_counters_attach(&counters, gettid(), &err));
	check_ok(kc_counters_read(&counters, &cycles, &insts, &err));
	begin = now_ns();
	while (now_ns() - begin < 5000000)
		;
	check_ok(kc_counters_read(&counters, &cycles, &insts, &err));
	check(cycles > 1000000 && cycles == insts);
	check_ok(kc_counters_set_period(&counters, 1ULL << 40, &err));
	insts = (uint64_t)counters.leader;
	check_ok(kc_counters_set_period(&counters, 1ULL << 40, &err)); /* the same: nothing */
	check((uint64_t)counters.leader == insts);
	kc_counters_detach(&counters);
	check(counters.leader == -1 && counters.thread == 0);
	/* An event that nobody has */
	kc_counters_use(&counters, PERF_TYPE_SOFTWARE, 0x7fffffff);
	check(kc_counters_probe(&counters));
	check(kc_counters_attach(&counters, gettid(), &err) == -1 &&
	      err.kind == KC_ERR_UNSUPPORTED);
}

/* Runs of a spinning guest with a source: ticks pass as the host's time does, scaled. */
static void test_source(struct kc_vcpu_config config)
{
	struct kc_vcpu *vcpu = make_vcpu_with(&guest, config);
	uint64_t passed, begin = now_ns(), total = 0, took;

	if (!vcpu) {
		check(err.kind == KC_ERR_UNSUPPORTED);
		return;
	}
	for (int i = 0; i < 20; i++) {
		check_ok(run_for(vcpu, 2 * PS_PER_MS, &passed));
		check(vcpu->stop_reason == KC_STOP_TICKS && passed >= 2 * PS_PER_MS);
		total += passed;
	}
	took = now_ns() - begin;
	check((double)total / 1000 / config.host_factor < (double)took * 1.01);
	check(kc_stat_read(&vcpu->stats, KC_STAT_cycles) > 0);
	check(kc_stat_read(&vcpu->stats, KC_STAT_ticks) >= 40 * PS_PER_MS);
	kc_vcpu_put(vcpu);
}

static void test_sources(void)
{
	static const double factors[] = { 1, 4, 0.25 };

	put_code(&guest, CODE, 0xeb, 0xfe);
	for (size_t i = 0; i < 3; i++) {
		struct kc_vcpu_config config = { .host_factor = factors[i],
						 .time_source = KC_TIME_TSC };

		test_source(config);
		config.time_source = KC_TIME_THREAD;
		test_source(config);
		config.time_source = KC_TIME_PERF;
		test_source(config); /* hardware counters, where there are some */
		config.has_perf_event = true;
		config.perf_type = PERF_TYPE_SOFTWARE;
		config.perf_config = PERF_COUNT_SW_TASK_CLOCK;
		test_source(config);
		config.use_perf_overflow = true;
		test_source(config);
	}
}

static void test_knobs(void)
{
	struct kc_vcpu_config config = { .host_factor = 1, .clock = 1e9 };
	struct kc_vcpu *vcpu = make_vcpu_with(&guest, config);
	static const double bad[] = { -1, 1.0 / 0.0, 0.0 / 0.0, 1e40 };

	check(vcpu && vcpu->period == 1000);
	kc_vcpu_put(vcpu);
	for (size_t i = 0; i < 4; i++) {
		config.host_factor = bad[i];
		check(!make_vcpu_with(&guest, config) && err.kind == KC_ERR_VALUE);
	}
	check(guest.vm->vcpu_count == 0 && guest.vm->queue->vcpu_count == 0);
}

int main(void)
{
	guest = make_guest();
	test_timers();
	test_counters();
	test_sources();
	test_knobs();
	free_guest(&guest);
	return 0;
}
