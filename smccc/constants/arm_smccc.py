# SPDX-License-Identifier: BSD-2-Clause
"""SMC Calling Convention constants.

Sources: Arm DEN0028 (SMC Calling Convention); names from Linux ``include/linux/arm-smccc.h``, Xen
``asm/smccc.h`` and ``public/arch-arm/smccc.h``, OP-TEE OS ``core/arch/arm/include/smccc.h`` and
``sm/std_smc.h``, TF-A ``include/lib/smccc.h``, ``include/services/{arm_arch_svc,std_svc,trng_svc}.h``.
Several trees give one number different names; all of them are here, each under its header.
Result codes are signed in Linux, Xen and TF-A, unsigned 32-bit in OP-TEE OS, as in those headers.
"""

from typing import Final

# arm-smccc.h and Xen smccc.h: fields of a function id.
ARM_SMCCC_STD_CALL: Final = 0
ARM_SMCCC_FAST_CALL: Final = 1
ARM_SMCCC_TYPE_SHIFT: Final = 31
ARM_SMCCC_SMC_32: Final = 0
ARM_SMCCC_SMC_64: Final = 1
ARM_SMCCC_CALL_CONV_SHIFT: Final = 30
ARM_SMCCC_OWNER_MASK: Final = 63
ARM_SMCCC_OWNER_SHIFT: Final = 24
ARM_SMCCC_FUNC_MASK: Final = 0xFFFF
ARM_SMCCC_1_3_SVE_HINT: Final = 0x00010000

# Xen smccc.h: its names of the calling convention field.
ARM_SMCCC_CONV_32: Final = 0
ARM_SMCCC_CONV_64: Final = 1
ARM_SMCCC_CONV_SHIFT: Final = 30

# TF-A lib/smccc.h: fields of a function id.
FUNCID_TYPE_MASK: Final = 1
FUNCID_TYPE_WIDTH: Final = 1
FUNCID_TYPE_SHIFT: Final = 31
FUNCID_CC_MASK: Final = 1
FUNCID_CC_WIDTH: Final = 1
FUNCID_CC_SHIFT: Final = 30
FUNCID_OEN_WIDTH: Final = 6
FUNCID_OEN_SHIFT: Final = 24
FUNCID_OEN_MASK: Final = 63
FUNCID_FC_RESERVED_WIDTH: Final = 7
FUNCID_FC_RESERVED_SHIFT: Final = 17
FUNCID_FC_RESERVED_MASK: Final = 127
FUNCID_SVE_HINT_MASK: Final = 1
FUNCID_SVE_HINT_WIDTH: Final = 1
FUNCID_SVE_HINT_SHIFT: Final = 16
FUNCID_NUM_SHIFT: Final = 0
FUNCID_NUM_WIDTH: Final = 16
FUNCID_NUM_MASK: Final = 0xFFFF
FUNCID_MASK: Final = 0xFFFFFFFF
SMC_TYPE_FAST: Final = 1
SMC_TYPE_YIELD: Final = 0
SMC_32: Final = 0
SMC_64: Final = 1

# arm-smccc.h: owners; Xen calls owner 5 HYPERVISOR.
ARM_SMCCC_OWNER_ARCH: Final = 0
ARM_SMCCC_OWNER_CPU: Final = 1
ARM_SMCCC_OWNER_SIP: Final = 2
ARM_SMCCC_OWNER_OEM: Final = 3
ARM_SMCCC_OWNER_STANDARD: Final = 4
ARM_SMCCC_OWNER_STANDARD_HYP: Final = 5
ARM_SMCCC_OWNER_VENDOR_HYP: Final = 6
ARM_SMCCC_OWNER_TRUSTED_APP: Final = 48
ARM_SMCCC_OWNER_TRUSTED_APP_END: Final = 49
ARM_SMCCC_OWNER_TRUSTED_OS: Final = 50
ARM_SMCCC_OWNER_TRUSTED_OS_END: Final = 63
ARM_SMCCC_OWNER_HYPERVISOR: Final = ARM_SMCCC_OWNER_STANDARD_HYP

# TF-A lib/smccc.h: owner ranges.
OEN_ARM_END: Final = 0
OEN_ARM_START: Final = 0
OEN_CPU_END: Final = 1
OEN_CPU_START: Final = 1
OEN_SIP_END: Final = 2
OEN_SIP_START: Final = 2
OEN_OEM_END: Final = 3
OEN_OEM_START: Final = 3
OEN_STD_END: Final = 4
OEN_STD_START: Final = 4
OEN_STD_HYP_END: Final = 5
OEN_STD_HYP_START: Final = 5
OEN_VEN_HYP_END: Final = 6
OEN_VEN_HYP_START: Final = 6
OEN_VEN_EL3_END: Final = 7
OEN_VEN_EL3_START: Final = 7
OEN_TAP_START: Final = 48
OEN_TAP_END: Final = 49
OEN_TOS_START: Final = 50
OEN_TOS_END: Final = 63
OEN_LIMIT: Final = 64

# Xen smccc.h: function ids reserved for existing APIs.
ARM_SMCCC_RESERVED_RANGE_START: Final = 0
ARM_SMCCC_RESERVED_RANGE_END: Final = 0x0100FFFF

# arm-smccc.h: architecture calls.
ARM_SMCCC_VERSION_FUNC_ID: Final = 0x80000000
ARM_SMCCC_ARCH_FEATURES_FUNC_ID: Final = 0x80000001
ARM_SMCCC_ARCH_SOC_ID: Final = 0x80000002
ARM_SMCCC_ARCH_WORKAROUND_1: Final = 0x80008000
ARM_SMCCC_ARCH_WORKAROUND_2: Final = 0x80007FFF
ARM_SMCCC_ARCH_WORKAROUND_3: Final = 0x80003FFF

# Xen smccc.h: architecture calls.
ARM_SMCCC_VERSION_FID: Final = 0x80000000
ARM_SMCCC_ARCH_FEATURES_FID: Final = 0x80000001
ARM_SMCCC_ARCH_WORKAROUND_1_FID: Final = 0x80008000
ARM_SMCCC_ARCH_WORKAROUND_2_FID: Final = 0x80007FFF
ARM_SMCCC_ARCH_WORKAROUND_3_FID: Final = 0x80003FFF

# OP-TEE OS smccc.h: architecture calls.
ARM_SMCCC_VERSION: Final = 0x80000000
ARM_SMCCC_ARCH_FEATURES: Final = 0x80000001

# TF-A arm_arch_svc.h: architecture calls.
SMCCC_VERSION: Final = 0x80000000
SMCCC_ARCH_FEATURES: Final = 0x80000001
SMCCC_ARCH_SOC_ID: Final = 0x80000002
SMCCC_ARCH_FEATURE_AVAILABILITY: Final = 0x80000003
SMCCC_ARCH_WORKAROUND_1: Final = 0x80008000
SMCCC_ARCH_WORKAROUND_2: Final = 0x80007FFF
SMCCC_ARCH_WORKAROUND_3: Final = 0x80003FFF
SMCCC_ARCH_WORKAROUND_4: Final = 0x80000004

# TF-A arm_arch_svc.h: SOC_ID types (a1) and fields of its results.
SMCCC_GET_SOC_VERSION: Final = 0
SMCCC_GET_SOC_REVISION: Final = 1
SMCCC_GET_SOC_NAME: Final = 2
SMCCC_SOC_NAME_LEN: Final = 136
SOC_ID_IMPL_DEF_SHIFT: Final = 0
SOC_ID_REV_SHIFT: Final = 0
SOC_ID_JEP_106_ID_CODE_SHIFT: Final = 16
SOC_ID_JEP_106_BANK_IDX_SHIFT: Final = 24
SOC_ID_IMPL_DEF_MASK: Final = 0xFFFF
SOC_ID_JEP_106_ID_CODE_MASK: Final = 0x00FF0000
SOC_ID_JEP_106_BANK_IDX_MASK: Final = 0x7F000000
SOC_ID_REV_MASK: Final = 0x7FFFFFFF

# arm-smccc.h, Xen smccc.h, OP-TEE OS smccc.h: versions (major << 16 | minor).
ARM_SMCCC_VERSION_1_0: Final = 0x00010000
ARM_SMCCC_VERSION_1_1: Final = 0x00010001
ARM_SMCCC_VERSION_1_2: Final = 0x00010002
ARM_SMCCC_VERSION_1_3: Final = 0x00010003
SMCCC_V_1_0: Final = 0x00010000
SMCCC_V_1_1: Final = 0x00010001
SMCCC_V_1_2: Final = 0x00010002

# Xen smccc.h: the major field after its shift; TF-A lib/smccc.h has 0x7fff, before the shift.
SMCCC_VERSION_MAJOR_MASK: Final = 0xFFFF0000
SMCCC_VERSION_MAJOR_SHIFT: Final = 16
SMCCC_VERSION_MINOR_MASK: Final = 0xFFFF
SMCCC_VERSION_MINOR_SHIFT: Final = 0

# TF-A lib/smccc.h: the version that it implements.
SMCCC_MAJOR_VERSION: Final = 1
SMCCC_MINOR_VERSION: Final = 5

# arm-smccc.h: results.
SMCCC_RET_SUCCESS: Final = 0
SMCCC_RET_NOT_SUPPORTED: Final = -1
SMCCC_RET_NOT_REQUIRED: Final = -2
SMCCC_RET_INVALID_PARAMETER: Final = -3
SMCCC_ARCH_WORKAROUND_RET_UNAFFECTED: Final = 1

# OP-TEE OS smccc.h: results, unsigned.
ARM_SMCCC_RET_SUCCESS: Final = 0
ARM_SMCCC_RET_NOT_SUPPORTED: Final = 0xFFFFFFFF
ARM_SMCCC_RET_NOT_REQUIRED: Final = 0xFFFFFFFE
ARM_SMCCC_RET_INVALID_PARAMETER: Final = 0xFFFFFFFD

# Xen smccc.h: results.
ARM_SMCCC_SUCCESS: Final = 0
ARM_SMCCC_NOT_SUPPORTED: Final = -1
ARM_SMCCC_NOT_REQUIRED: Final = -2
ARM_SMCCC_ERR_UNKNOWN_FUNCTION: Final = -1

# TF-A lib/smccc.h and arm_arch_svc.h: results.
SMC_OK: Final = 0
SMC_UNK: Final = -1
SMC_PREEMPTED: Final = -2
SMC_DENIED: Final = -3
SMC_INVALID_PARAM: Final = -4
SMC_ARCH_CALL_SUCCESS: Final = 0
SMC_ARCH_CALL_NOT_SUPPORTED: Final = -1
SMC_ARCH_CALL_NOT_REQUIRED: Final = -2
SMC_ARCH_CALL_INVAL_PARAM: Final = -3

# TF-A lib/smccc.h: where a call came from.
SMC_FROM_SECURE: Final = 0
SMC_FROM_NON_SECURE: Final = 1
SMC_FROM_MASK: Final = 33
SMC_FROM_REALM: Final = 33

# arm-smccc.h: function number of the call UID query, same for every owner.
ARM_SMCCC_FUNC_QUERY_CALL_UID: Final = 0xFF01

# OP-TEE OS sm/std_smc.h and TF-A std_svc.h: standard service queries and versions.
ARM_STD_SVC_CALL_COUNT: Final = 0x8400FF00
ARM_STD_SVC_UID: Final = 0x8400FF01
ARM_STD_SVC_VERSION: Final = 0x8400FF03
STD_SVC_VERSION_MAJOR: Final = 0
STD_SVC_VERSION_MINOR: Final = 1
PSCI_FID_MASK: Final = 0xFFE0
PSCI_FID_VALUE: Final = 0

# Xen public/arch-arm/smccc.h: versions of its own services.
XEN_SMCCC_MAJOR_REVISION: Final = 0
XEN_SMCCC_MINOR_REVISION: Final = 1
SSSC_SMCCC_MAJOR_REVISION: Final = 0
SSSC_SMCCC_MINOR_REVISION: Final = 1

# arm-smccc.h: true random number service (Arm DEN0098).
ARM_SMCCC_TRNG_VERSION: Final = 0x84000050
ARM_SMCCC_TRNG_FEATURES: Final = 0x84000051
ARM_SMCCC_TRNG_GET_UUID: Final = 0x84000052
ARM_SMCCC_TRNG_RND32: Final = 0x84000053
ARM_SMCCC_TRNG_RND64: Final = 0xC4000053

# TF-A trng_svc.h: the same service.
ARM_TRNG_VERSION: Final = 0x84000050
ARM_TRNG_FEATURES: Final = 0x84000051
ARM_TRNG_GET_UUID: Final = 0x84000052
ARM_TRNG_RND32: Final = 0x84000053
ARM_TRNG_RND64: Final = 0xC4000053
TRNG_VERSION_MINOR: Final = 0
TRNG_VERSION_MAJOR: Final = 1
TRNG_E_SUCCESS: Final = 0
TRNG_E_NOT_SUPPORTED: Final = -1
TRNG_E_INVALID_PARAMS: Final = -2
TRNG_E_NO_ENTROPY: Final = -3
TRNG_E_NOT_IMPLEMENTED: Final = -4
TRNG_RND32_ENTROPY_MAXBITS: Final = 96
TRNG_RND64_ENTROPY_MAXBITS: Final = 192
