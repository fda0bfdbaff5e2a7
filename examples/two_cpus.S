# SPDX-License-Identifier: MIT
# Two CPUs: the first starts the second by INIT and SIPI, and they talk by interrupts.
#
#   make -C examples && kvmcpu run --cpus 2 examples/two_cpus.elf
#
# It starts in protected mode, flat segments, on the first CPU. Numbers of local APIC registers
# and of the start-up protocol: Intel SDM vol. 3, 11.4 and 11.6.1 (interrupt command register),
# 9.4.4 (INIT-SIPI-SIPI).
	.intel_syntax noprefix

	.set	SERIAL, 0x3f8
	.set	DEBUG_EXIT, 0xf4
	.set	APIC, 0xfee00000
	.set	APIC_EOI, APIC + 0xb0
	.set	APIC_SPURIOUS, APIC + 0xf0
	.set	APIC_COMMAND, APIC + 0x300	# writing its low half sends
	.set	APIC_TARGET, APIC + 0x310
	.set	INIT, 0x4500
	.set	SIPI, 0x4600			# and the page that it starts in
	.set	FIXED, 0x4000			# and the vector
	.set	PING, 0x41
	.set	PONG, 0x40
	.set	START, 0x8000			# where the second CPU wakes up, in real mode
	.set	CODE, 0x08
	.set	DATA, 0x10
	.set	TURNS, 5

# IRET for an interrupt at the same privilege level. KVM's instruction emulator, which runs such
# code on hosts without hardware virtualization, has no IRET in protected mode.
	.macro	interrupt_return
	push	[esp + 8]			# the flags, without IF:
	and	byte ptr [esp + 1], 0xfd
	popfd
	sti					# interrupts are on after the next instruction
	retf	4
	.endm

	.text
	.globl	_start
_start:
	lgdt	[gdt_pointer]
	jmp	CODE:1f
1:	mov	ax, DATA
	mov	ds, ax
	mov	es, ax
	mov	ss, ax
	mov	esp, offset first_stack
	mov	eax, offset pong
	mov	ebx, PONG
	call	set_gate
	mov	eax, offset ping
	mov	ebx, PING
	call	set_gate
	lidt	[idt_pointer]
	mov	dword ptr [APIC_SPURIOUS], 0x1ff	# enabled; vector 0xff

	mov	esi, offset wake_up
	mov	edi, START
	mov	ecx, offset wake_up_end - wake_up
	rep movsb
	mov	dword ptr [APIC_TARGET], 1 << 24
	mov	dword ptr [APIC_COMMAND], INIT
	mov	dword ptr [APIC_COMMAND], SIPI | START >> 12
2:	pause
	cmp	dword ptr [online], 0
	je	2b
	mov	esi, offset is_up
	call	print

	# Ping, and halt until it is answered.
3:	mov	dword ptr [APIC_TARGET], 1 << 24
	mov	dword ptr [APIC_COMMAND], FIXED | PING
4:	cli
	mov	eax, [pings]
	cmp	eax, [pongs]
	ja	5f				# the second CPU has it, and its answer is on its way
	cmp	eax, [turns]
	ja	6f
5:	sti
	hlt
	jmp	4b
6:	mov	[turns], eax
	mov	esi, offset answered
	call	print
	cmp	dword ptr [turns], TURNS
	jb	3b
	xor	eax, eax
	out	DEBUG_EXIT, al
7:	hlt
	jmp	7b

# On the second CPU: count the ping and answer it.
ping:	push	eax
	inc	dword ptr [pings]
	mov	dword ptr [APIC_EOI], 0
	mov	dword ptr [APIC_TARGET], 0
	mov	dword ptr [APIC_COMMAND], FIXED | PONG
	pop	eax
	interrupt_return

# On the first.
pong:	inc	dword ptr [pongs]
	mov	dword ptr [APIC_EOI], 0
	interrupt_return

# The interrupt gate of vector EBX leads to EAX.
set_gate:
	mov	[idt + ebx * 8], ax
	mov	word ptr [idt + ebx * 8 + 2], CODE
	mov	word ptr [idt + ebx * 8 + 4], 0x8e00	# present, 32-bit interrupt gate
	shr	eax, 16
	mov	[idt + ebx * 8 + 6], ax
	ret

# Print the text at ESI, which ends with a zero byte.
print:	mov	dx, SERIAL
1:	lodsb
	test	al, al
	jz	2f
	out	dx, al
	jmp	1b
2:	ret

# The second CPU's first instructions, copied to START: to protected mode.
	.code16
wake_up:
	cli
	mov	ax, START >> 4
	mov	ds, ax
	lgdt	[wake_up_gdt - wake_up]
	mov	eax, cr0
	or	al, 1
	mov	cr0, eax
	.byte	0x66, 0xea			# jmp CODE:second, with a 32-bit offset
	.long	second
	.word	CODE
wake_up_gdt:
	.word	gdt_end - gdt - 1
	.long	gdt
wake_up_end:

	.code32
second:	mov	ax, DATA
	mov	ds, ax
	mov	ss, ax
	mov	esp, offset second_stack
	lidt	[idt_pointer]
	mov	dword ptr [APIC_SPURIOUS], 0x1ff
	mov	dword ptr [online], 1
	sti
1:	hlt
	jmp	1b

	.section .rodata
is_up:	.asciz	"the second CPU is up\n"
answered:
	.asciz	"a ping was answered\n"

	.data
	.balign	8
gdt:	.quad	0
	.quad	0x00cf9a000000ffff		# code, flat, 32-bit
	.quad	0x00cf92000000ffff		# data
gdt_end:
gdt_pointer:
	.word	gdt_end - gdt - 1
	.long	gdt
idt_pointer:
	.word	256 * 8 - 1
	.long	idt

	.bss
	.balign	8
idt:	.skip	256 * 8
online:	.skip	4
pings:	.skip	4
pongs:	.skip	4
turns:	.skip	4
	.skip	4096
first_stack:
	.skip	4096
second_stack:
