// SPDX-License-Identifier: MIT
module kvm.vcpu;
