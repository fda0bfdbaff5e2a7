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
	char message[256];
	va_list args;

	va_start(args, format);
	vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	trace->emit(trace->opaque, flag, kc_queue_now(vcpu->queue), vcpu->name, message);
}
