# SPDX-License-Identifier: MIT
# The kernel's entry, its multiboot header, and the ways into its interrupt handlers.
	.set	MAGIC, 0x1badb002
	.set	FLAGS, 3			# modules at page boundaries; tell about memory

	.section .multiboot, "a"
	.balign	4
	.long	MAGIC, FLAGS, -(MAGIC + FLAGS)

	.text
	.globl	_start
_start:
	mov	$stack_top, %esp
	push	%ebx				# the boot loader's information
	push	%eax				# and its magic number
	lgdt	gdt_pointer
	ljmp	$0x08, $1f
1:	mov	$0x10, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %fs
	mov	%eax, %gs
	mov	%eax, %ss
	call	main
2:	cli
	hlt
	jmp	2b

# One entry for each of the 16 interrupt lines. IRET would do; but KVM's instruction emulator, which
# runs such code on hosts without hardware virtualization, has no IRET in protected mode.
	.macro	entry line
	.globl	entry_\line
entry_\line:
	pushal
	push	$\line
	call	interrupt
	add	$4, %esp
	popal
	push	8(%esp)				# the flags, without IF:
	andb	$0xfd, 1(%esp)
	popfl
	sti					# on after the next instruction
	lret	$4
	.endm
	.irp	line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	entry	\line
	.endr

	.section .rodata
	.balign	8
gdt:	.quad	0
	.quad	0x00cf9a000000ffff		# 0x08: code
	.quad	0x00cf92000000ffff		# 0x10: data
gdt_pointer:
	.word	. - gdt - 1
	.long	gdt
	.globl	entries
entries:
	.irp	line, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	.long	entry_\line
	.endr

	.bss
	.balign	16
	.skip	16384
stack_top:
