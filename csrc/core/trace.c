// SPDX-License-Identifier: MIT
#include "trace.h"

#include <stdarg.h>
#include <stdio.h>

#include "vcpu.h"
#include "vm.h"

const char *const kc_trace_names[KC_TRACE_COUNT] = {
#define X(name) #name,
	KC_TRACE_FLAGS(X)
#undef X
};

void kc_trace_emit(struct kc_vcpu *vcpu, enum kc_trace_flag flag, const char *format, ...)
{
	struct kc_trace *trace = vcpu->vm->trace;
	uint64_t tick = kc_queue_now(vcpu->queue);
	char message[256];
	va_list args;

	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	/* An exit's tick is known before the queue's time has moved on to it. */
	if (vcpu->record && vcpu->record->tick > tick)
		tick = vcpu->record->tick;
	trace->emit(trace->opaque, flag, tick, vcpu->name, message);
}
