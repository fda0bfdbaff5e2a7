# SPDX-License-Identifier: MIT
# A guest that prints over its serial port and ends with status 0:
#
#   make -C examples && kvmcpu run examples/hello.elf
#
# It starts in 64-bit mode with a stack; RDI is the address of the arguments' text, or 0.
	.intel_syntax noprefix

	.set	SERIAL, 0x3f8
	.set	LINE_STATUS, SERIAL + 5
	.set	READY, 0x20			# the transmitter takes a byte
	.set	DEBUG_EXIT, 0xf4

	.text
	.globl	_start
_start:
	mov	rbx, rdi
	lea	rsi, [rip + hello]
	call	print
	test	rbx, rbx
	jz	1f
	lea	rsi, [rip + arguments]
	call	print
	mov	rsi, rbx
	call	print
	lea	rsi, [rip + newline]
	call	print
1:	xor	eax, eax
	out	DEBUG_EXIT, al			# the run ends here, with status 0
2:	hlt
	jmp	2b

# Print the text at RSI, which ends with a zero byte.
print:
	mov	dx, LINE_STATUS
1:	in	al, dx
	test	al, READY
	jz	1b
	mov	al, [rsi]
	inc	rsi
	test	al, al
	jz	2f
	mov	dx, SERIAL
	out	dx, al
	jmp	print
2:	ret

	.section .rodata
hello:	.asciz	"Hello from a real virtual CPU!\n"
arguments:
	.asciz	"My arguments: "
newline:
	.asciz	"\n"
