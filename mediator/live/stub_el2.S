/* SPDX-License-Identifier: BSD-2-Clause
 *
 * The forwarding stub at EL2: the whole "hypervisor" of a live guest. It is given to QEMU as firmware
 * (flash, address 0) and does two things: start a vCPU in the kernel, and hand every SMC and HVC of
 * the kernel to the process that owns the mailbox page of that vCPU.
 *
 * No stack, no tables of translations, no data: sp is the mailbox page (guest RAM, MAILBOX + 4 KiB
 * for each vCPU, layout in mediator/live/mailbox.py). Position: 0. Assemble, link nothing, take .text:
 *   aarch64-linux-gnu-as -o stub.o stub_el2.S && aarch64-linux-gnu-objcopy -O binary stub.o stub.bin
 * The assembled words stand in stub_el2.hex; a test compares them.
 */
        .equ    MAILBOX, 0x40100000
        .equ    REGS, 0x00              /* x0..x7 */
        .equ    SYNDROME, 0x40          /* ESR_EL2, ELR_EL2 */
        .equ    STATE, 0x50
        .equ    ENTRY, 0x58             /* kernel entry, then x0 there */
        .equ    BELL, 0x68              /* 0 semihosting, 1 none: the vCPU spins */
        .equ    BYTE, 0x70              /* what the bell sends */

        .equ    RUNNING, 0
        .equ    REQUEST, 1
        .equ    FORWARD, 3
        .equ    FAULT, 4
        .equ    UNDEFINED, 6

        .equ    HCR, 0x80080000         /* RW: EL1 is AArch64; TSC: its SMCs trap here */
        .equ    SCTLR, 0x30d00800       /* EL1 starts with MMU and caches off, RES1 bits set */
        .equ    SPSR, 0x3c5             /* EL1h, D A I F masked */
        .equ    SMC64, 0x17             /* exception class of a trapped SMC */
        .equ    UNKNOWN, 0x02000000     /* ESR_EL1 of an undefined instruction: class 0, 32 bits long */
        .equ    SYS_WRITEC, 3
        .equ    SYS_READC, 7

        .text
start:  mrs     x0, mpidr_el1
        and     x0, x0, #0xff
        mov     x1, #MAILBOX
        add     x0, x1, x0, lsl #12
        mov     sp, x0
        adr     x1, vectors
        msr     vbar_el2, x1
        mov     x1, #0xf                /* system registers of the GIC, here and at EL1 */
        msr     S3_4_C12_C9_5, x1       /* ICC_SRE_EL2 */
        mov     x1, #HCR
        msr     hcr_el2, x1
        mov     x1, #0x33ff             /* RES1 bits only: nothing of the FPU traps */
        msr     cptr_el2, x1
        mov     x1, #3                  /* EL1 may use the physical counter and timer */
        msr     cnthctl_el2, x1
        msr     cntvoff_el2, xzr
        msr     mdcr_el2, xzr
        msr     vttbr_el2, xzr
        mrs     x1, midr_el1
        msr     vpidr_el2, x1
        mrs     x1, mpidr_el1
        msr     vmpidr_el2, x1
        mov     x1, #(SCTLR & 0xffff)
        movk    x1, #(SCTLR >> 16), lsl #16
        msr     sctlr_el1, x1
        mov     x1, #SPSR
        msr     spsr_el2, x1
        ldp     x1, x0, [sp, #ENTRY]
        msr     elr_el2, x1
        mov     x1, xzr
        mov     x2, xzr
        mov     x3, xzr
        isb
        eret

/* A guest's call: x0..x7 and the syndrome into the mailbox, ring, wait, answer back. */
call:   stp     x0, x1, [sp, #REGS]
        stp     x2, x3, [sp, #REGS + 16]
        stp     x4, x5, [sp, #REGS + 32]
        stp     x6, x7, [sp, #REGS + 48]
        mrs     x4, esr_el2
        mrs     x5, elr_el2
        stp     x4, x5, [sp, #SYNDROME]
        lsr     x4, x4, #26
        cmp     x4, #SMC64
        b.ne    1f
        add     x5, x5, #4              /* a trapped SMC has not been stepped over, an HVC has */
        msr     elr_el2, x5
1:      add     x3, sp, #STATE
        mov     x7, #REQUEST
        stlr    x7, [x3]
        ldr     x4, [sp, #BELL]
        cbnz    x4, 3f
        /* A pending timer tick would count as work and keep the vCPU from sleeping in SYS_READC. */
        mrs     x6, S3_0_C12_C12_7      /* ICC_IGRPEN1_EL1 */
        msr     S3_0_C12_C12_7, xzr
        add     x1, sp, #BYTE
        mov     x0, #SYS_WRITEC
        hlt     #0xf000
2:      ldar    x7, [x3]                /* a byte may have been another vCPU's: look before sleeping */
        cmp     x7, #REQUEST
        b.ne    4f
        mov     x0, #SYS_READC
        hlt     #0xf000
        b       2b
3:      yield
        ldar    x7, [x3]
        cmp     x7, #REQUEST
        b.eq    3b
        b       5f
4:      msr     S3_0_C12_C12_7, x6
5:      ldp     x0, x1, [sp, #REGS]
        ldp     x4, x5, [sp, #REGS + 32]
        mov     x2, #RUNNING
        stlr    x2, [x3]                /* before CPU_OFF, which does not come back */
        cmp     x7, #UNDEFINED
        b.eq    undef
        ldp     x2, x3, [sp, #REGS + 16]
        cmp     x7, #FORWARD
        ldp     x6, x7, [sp, #REGS + 48]
        b.ne    6f
        smc     #0                      /* QEMU's own PSCI */
6:      eret

/* The call is an undefined instruction: the exception that the processor itself would take at EL1 (one
 * without PAN), with x0..x7 as they are. SPSR's lowest bit says which stack pointer was in use. */
undef:  mrs     x2, elr_el2
        sub     x2, x2, #4
        msr     elr_el1, x2
        mrs     x2, spsr_el2
        msr     spsr_el1, x2
        mrs     x3, vbar_el1
        tbz     x2, #0, 8f
        add     x3, x3, #0x200
8:      msr     elr_el2, x3
        mov     x2, #SPSR
        msr     spsr_el2, x2
        mov     x2, #UNKNOWN
        msr     esr_el1, x2
        ldp     x2, x3, [sp, #REGS + 16]
        ldp     x6, x7, [sp, #REGS + 48]
        eret

/* Anything else that ends up here is a defect of this stub: say so once and stop. */
fault:  mov     x0, #FAULT
        str     x0, [sp, #STATE]
        mov     x0, #SYS_WRITEC
        add     x1, sp, #BYTE
        hlt     #0xf000
7:      wfe
        b       7b

        .balign 2048
vectors:
        .rept   8                       /* from EL2 itself */
        .balign 128
        b       fault
        .endr
        .balign 128                     /* synchronous, from EL1 in AArch64 */
        b       call
        .rept   7
        .balign 128
        b       fault
        .endr
