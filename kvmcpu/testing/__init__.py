# SPDX-License-Identifier: MIT
"""What kvmcpu adds to pytest: tests say which KVM they need, and run in a lab that has it."""
