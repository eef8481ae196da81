//! Golden values for the transcendental instructions, and tests of the unit's behaviour that a 64-bit user program
//! cannot show. `tests/native` compares everything else with the processor.

use super::transcend;
use crate::hypervisor::soft::rig::{Rig, Stop};
use crate::hypervisor::soft::softfloat::{Env, F80, flag};

#[derive(Debug, Clone, Copy)]
enum Function {
    TwoToXMinus1,
    YLog2X,
    YLog2XPlus1,
    ArcTangent,
    Sine,
    Cosine,
    Tangent,
}

/// Function, x, y, and the result rounded to nearest from 140 decimal digits; the trigonometric ones with their
/// operand reduced by the 66-bit π.
#[rustfmt::skip]
const GOLDEN: &[(Function, u64, u16, u64, u16, u64, u16)] = &[
    (Function::TwoToXMinus1, 0xc164d8399f767c45, 0x3fed, 0x8000000000000000, 0x3fff, 0x860cfc0fca35f518, 0x3fed),
    (Function::TwoToXMinus1, 0xd76d4330f1446bea, 0xbff8, 0x8000000000000000, 0x3fff, 0x94a4e30ac3f53627, 0xbff8),
    (Function::TwoToXMinus1, 0xc6a5387777330bdb, 0x3fe6, 0x8000000000000000, 0x3fff, 0x89b0c45bea3d8737, 0x3fe6),
    (Function::TwoToXMinus1, 0xa827688de6a16a3b, 0xbfde, 0x8000000000000000, 0x3fff, 0xe91c6129c6b19b35, 0xbfdd),
    (Function::TwoToXMinus1, 0xbf1f65a8de527100, 0x3fef, 0x8000000000000000, 0x3fff, 0x847a27b7e0ed0ef5, 0x3fef),
    (Function::TwoToXMinus1, 0xbfd4235992edcf45, 0x3fd7, 0x8000000000000000, 0x3fff, 0x84f72ade6ed1ba39, 0x3fd7),
    (Function::TwoToXMinus1, 0xc78c281d687c966c, 0x3fe2, 0x8000000000000000, 0x3fff, 0x8a50d6d74b913356, 0x3fe2),
    (Function::TwoToXMinus1, 0xe3b229f1c4069545, 0x3fe1, 0x8000000000000000, 0x3fff, 0x9dd3a9a9c8af3af3, 0x3fe1),
    (Function::TwoToXMinus1, 0xa38642ea126a1e48, 0x3ffe, 0x8000000000000000, 0x3fff, 0x8e9771a3eaeb043a, 0x3ffe),
    (Function::TwoToXMinus1, 0xa1da8978206f5c66, 0x3fd7, 0x8000000000000000, 0x3fff, 0xe06077092def3ecb, 0x3fd6),
    (Function::YLog2X, 0xb59eeefb015c33b2, 0x3ffe, 0xfb7ff337f5cae3bf, 0x3ffc, 0xf917ae276b4a188e, 0xbffb),
    (Function::YLog2X, 0xd04b74ba4a0fe75d, 0x3ffd, 0xe049548e8a0a8c96, 0x4004, 0x9181fd9c4458b147, 0xc005),
    (Function::YLog2X, 0xf0e3cd972e81d66d, 0x3ffe, 0xf7108e96f770c226, 0xc000, 0xad7ab13eb0e4ca26, 0x3ffd),
    (Function::YLog2X, 0xea3753915c76f18a, 0x3ffc, 0xa54cb864ef901b93, 0xbffe, 0xafe76927bd062f8a, 0x3fff),
    (Function::YLog2X, 0xd14125844d25deb3, 0x3ffe, 0xad8d194a98921396, 0xbfff, 0xc9ef16a7fc84ff80, 0x3ffd),
    (Function::YLog2X, 0xd18a669a5af84e6b, 0x3ffe, 0xb24891917b121dc5, 0xbfff, 0xce08c34be27707d2, 0x3ffd),
    (Function::YLog2X, 0xb465325278f845f5, 0x3ffe, 0xc19521fe0e979cf3, 0x3ffa, 0xc382ed362692bba5, 0xbff9),
    (Function::YLog2X, 0xd84a1d3a5b8e8fb2, 0x4000, 0x8c8f95ef04a012e8, 0xc000, 0xf6f0adb4a123eb20, 0xc000),
    (Function::YLog2X, 0xd75b1e249419cf4d, 0x3ffe, 0x8bf64ef773ec28d0, 0x3ffc, 0x8ba34ad8e37b49f8, 0xbffa),
    (Function::YLog2X, 0xb24f3e81f453324e, 0x3ffb, 0xbeff8b3fc177f113, 0xc001, 0xa8299748b3fe84b4, 0x4003),
    (Function::YLog2XPlus1, 0xe488b6c85ad3ba32, 0xbfee, 0x9ba95a54767d5274, 0x4003, 0xc87ab95ed5b53107, 0xbff3),
    (Function::YLog2XPlus1, 0xde0730b3cc170c31, 0xbfdf, 0xfa749692f21ff5eb, 0xbffb, 0x9cb0caeec53313c9, 0x3fdd),
    (Function::YLog2XPlus1, 0x9c5f319e834c1b69, 0x3fe4, 0xc692ba0357079670, 0xc002, 0xaefd7c5e6cc1f567, 0xbfe8),
    (Function::YLog2XPlus1, 0xd119cdccaf9b74f8, 0xbfe0, 0xa07657d61404ab1e, 0x3ffc, 0xbd1671a2d719a85e, 0xbfde),
    (Function::YLog2XPlus1, 0xff297d0e4f2e84fc, 0xbfeb, 0x94b9adb50c6dea3d, 0x4003, 0xd5dcf7a7d0771ff0, 0xbff0),
    (Function::YLog2XPlus1, 0x8825c7cc67e84707, 0x3fdc, 0xd3881a5058056ed0, 0xbffe, 0xa24ced9e1b007f53, 0xbfdc),
    (Function::YLog2XPlus1, 0xa547f19c6bf84914, 0x3fd0, 0x88606af8a36939ef, 0xc001, 0xfe0e0ca983c86003, 0xbfd2),
    (Function::YLog2XPlus1, 0xa16d27a23501e088, 0x3ffb, 0xa161d90921fdac3a, 0xc000, 0x8d506ff4343e27ba, 0xbffd),
    (Function::ArcTangent, 0xdf7cc5d86f3f0240, 0xbffb, 0xcb78dc3d6baf71d7, 0xbffb, 0x99cb636bf362c6a8, 0xc000),
    (Function::ArcTangent, 0x9ed2aa0cffd21f09, 0x3ffb, 0xf5cb2afc741b324d, 0x4000, 0xc67a45b96aa267fa, 0x3fff),
    (Function::ArcTangent, 0xfaa286ac5154ef5f, 0xbffd, 0xe6e053f7675ebe3b, 0xbffb, 0xba936a195b95d478, 0xc000),
    (Function::ArcTangent, 0xfd06f9f6d2723248, 0x4001, 0xefe8b3b5a080c6a5, 0x4000, 0xe2a8f50762505969, 0x3ffd),
    (Function::ArcTangent, 0x96d1b5ac2e1c5d3a, 0xc000, 0x8c5050eac832652e, 0xc001, 0x8417a018d75274c0, 0xc000),
    (Function::ArcTangent, 0xcb8f1137c938c68d, 0xc005, 0xa9fd1ce996655f23, 0x3ff9, 0xc90c8381e6bfb93e, 0x4000),
    (Function::ArcTangent, 0x8f2f39495d09dd29, 0x4004, 0xfc55dde1d5d1cbd0, 0x3ffd, 0xe18fb99bf166e4f8, 0x3ff8),
    (Function::ArcTangent, 0xb74acffbb0ddb48b, 0x3ffd, 0xa6523995570f0cbe, 0x3ffb, 0xe46e491477ec4384, 0x3ffc),
    (Function::ArcTangent, 0xf96bfa0002f6f33d, 0x4001, 0xabf0ca69536e816b, 0xbffd, 0xb05dc29ee953b594, 0xbffa),
    (Function::ArcTangent, 0x8016e14dd111eb37, 0x4003, 0xd90ef5945b48368e, 0x3ffd, 0xd8db37462b23c8cc, 0x3ff9),
    (Function::ArcTangent, 0xf000feb0bce240c6, 0xbfff, 0xac273105d7c6f4e2, 0xc004, 0xcea28aa2c9cc537a, 0xbfff),
    (Function::ArcTangent, 0xf4de438f5d411b0d, 0x3ffe, 0xfaeeb40c8782d4d5, 0xbffb, 0x8275a18d83df4250, 0xbffc),
    (Function::Sine, 0xeff83f045caded41, 0xbfff, 0x8000000000000000, 0x3fff, 0xf4439bee256753df, 0xbffe),
    (Function::Cosine, 0xeff83f045caded41, 0xbfff, 0x8000000000000000, 0x3fff, 0x993edd01fd13ec17, 0xbffd),
    (Function::Tangent, 0xeff83f045caded41, 0xbfff, 0x8000000000000000, 0x3fff, 0xcc0632be7d8f3ccf, 0x4000),
    (Function::Sine, 0xb83d5f7b142ea4cd, 0xc032, 0x8000000000000000, 0x3fff, 0x83b89103673e6afd, 0xbffe),
    (Function::Cosine, 0xb83d5f7b142ea4cd, 0xc032, 0x8000000000000000, 0x3fff, 0xdb831cdb4a96aefe, 0xbffe),
    (Function::Tangent, 0xb83d5f7b142ea4cd, 0xc032, 0x8000000000000000, 0x3fff, 0x999dae2f44375434, 0x3ffe),
    (Function::Sine, 0xefac6de6c7c66f53, 0x4001, 0x8000000000000000, 0x3fff, 0xef35d2c5ae7d791f, 0x3ffe),
    (Function::Cosine, 0xefac6de6c7c66f53, 0x4001, 0x8000000000000000, 0x3fff, 0xb65e070774700658, 0x3ffd),
    (Function::Tangent, 0xefac6de6c7c66f53, 0x4001, 0x8000000000000000, 0x3fff, 0xa7e59e30a68ea32b, 0x4000),
    (Function::Sine, 0xebb906c9efb9f2c6, 0x3ff4, 0x8000000000000000, 0x3fff, 0xebb904b4fa5e4ff2, 0x3ff4),
    (Function::Cosine, 0xebb906c9efb9f2c6, 0x3ff4, 0x8000000000000000, 0x3fff, 0xfffff93796461e88, 0x3ffe),
    (Function::Tangent, 0xebb906c9efb9f2c6, 0x3ff4, 0x8000000000000000, 0x3fff, 0xebb90af3da8aa367, 0x3ff4),
    (Function::Sine, 0xddfc1c08c6530cc3, 0x401f, 0x8000000000000000, 0x3fff, 0xff6ef42ccaf3124c, 0x3ffe),
    (Function::Cosine, 0xddfc1c08c6530cc3, 0x401f, 0x8000000000000000, 0x3fff, 0x882e6eaa767a5412, 0x3ffb),
    (Function::Tangent, 0xddfc1c08c6530cc3, 0x401f, 0x8000000000000000, 0x3fff, 0xf01675345d827e73, 0x4002),
    (Function::Sine, 0xb212c44f07123c8d, 0x3ffe, 0x8000000000000000, 0x3fff, 0xa40e6fb21b6cd0c6, 0x3ffe),
    (Function::Cosine, 0xb212c44f07123c8d, 0x3ffe, 0x8000000000000000, 0x3fff, 0xc486067891270ff4, 0x3ffe),
    (Function::Tangent, 0xb212c44f07123c8d, 0x3ffe, 0x8000000000000000, 0x3fff, 0xd5b4f7999e5134cb, 0x3ffe),
    (Function::Sine, 0xa66e12779fc32bb5, 0xbfec, 0x8000000000000000, 0x3fff, 0xa66e12779f079793, 0xbfec),
    (Function::Cosine, 0xa66e12779fc32bb5, 0xbfec, 0x8000000000000000, 0x3fff, 0xfffffffffc9e6886, 0x3ffe),
    (Function::Tangent, 0xa66e12779fc32bb5, 0xbfec, 0x8000000000000000, 0x3fff, 0xa66e1277a13a53fa, 0xbfec),
    (Function::Sine, 0xae376b8baf9ae4aa, 0x4002, 0x8000000000000000, 0x3fff, 0xfe88e396d616deb5, 0xbffe),
    (Function::Cosine, 0xae376b8baf9ae4aa, 0x4002, 0x8000000000000000, 0x3fff, 0xdacec33e7040dc8c, 0xbffb),
    (Function::Tangent, 0xae376b8baf9ae4aa, 0x4002, 0x8000000000000000, 0x3fff, 0x94e6614a5df4611a, 0x4002),
    (Function::Sine, 0xb9eb08e4fad18c6a, 0xbffe, 0x8000000000000000, 0x3fff, 0xaa002a2749d3cc5b, 0xbffe),
    (Function::Cosine, 0xb9eb08e4fad18c6a, 0xbffe, 0x8000000000000000, 0x3fff, 0xbf679e3503115184, 0x3ffe),
    (Function::Tangent, 0xb9eb08e4fad18c6a, 0xbffe, 0x8000000000000000, 0x3fff, 0xe35f577e33b8463e, 0xbffe),
    (Function::Sine, 0x9c5f4755222ed171, 0x3ff5, 0x8000000000000000, 0x3fff, 0x9c5f44e6cb500cb3, 0x3ff5),
    (Function::Cosine, 0x9c5f4755222ed171, 0x3ff5, 0x8000000000000000, 0x3fff, 0xfffff40f77cb0972, 0x3ffe),
    (Function::Tangent, 0x9c5f4755222ed171, 0x3ff5, 0x8000000000000000, 0x3fff, 0x9c5f4c31d02099c8, 0x3ff5),
    (Function::Sine, 0xb1800c217b8fba72, 0xc001, 0x8000000000000000, 0x3fff, 0xabeafbe159d6f506, 0x3ffe),
    (Function::Cosine, 0xb1800c217b8fba72, 0xc001, 0x8000000000000000, 0x3fff, 0xbdaf3f8debef3303, 0x3ffe),
    (Function::Tangent, 0xb1800c217b8fba72, 0xc001, 0x8000000000000000, 0x3fff, 0xe8059f1111bc5d74, 0x3ffe),
    (Function::Sine, 0xe15b43f359e1adc4, 0x4002, 0x8000000000000000, 0x3fff, 0xffa6190b5fc2b682, 0x3ffe),
    (Function::Cosine, 0xe15b43f359e1adc4, 0x4002, 0x8000000000000000, 0x3fff, 0xd678e4580513c050, 0x3ffa),
    (Function::Tangent, 0xe15b43f359e1adc4, 0x4002, 0x8000000000000000, 0x3fff, 0x9893233dcda8da47, 0x4003),
];

fn number(mantissa: u64, sign_exp: u16) -> F80 {
    F80 { mantissa, sign_exp }
}

#[test]
fn transcendental_results_are_the_true_values_rounded_to_nearest() {
    for &(function, x_sig, x_se, y_sig, y_se, sig, se) in GOLDEN {
        let (x, y) = (number(x_sig, x_se), number(y_sig, y_se));
        let mut env = Env::from_control_word(0x37f);
        let result = match function {
            Function::TwoToXMinus1 => transcend::f2xm1(&mut env, x),
            Function::YLog2X => transcend::fyl2x(&mut env, x, y),
            Function::YLog2XPlus1 => transcend::fyl2xp1(&mut env, x, y),
            Function::ArcTangent => transcend::fpatan(&mut env, x, y),
            Function::Sine => transcend::fsin(&mut env, x),
            Function::Cosine => transcend::fcos(&mut env, x),
            Function::Tangent => transcend::fptan(&mut env, x),
        };
        assert_eq!(result, number(sig, se), "{function:?} of {x:x?} and {y:x?}");
        assert_eq!(env.flags & flag::ALL, flag::INEXACT, "{function:?} of {x:x?}");
    }
}

#[test]
fn a_logarithm_of_a_power_of_two_is_exact() {
    let mut env = Env::from_control_word(0x37f);
    let eight = number(1 << 63, 0x3fff + 3);
    let result = transcend::fyl2x(&mut env, eight, number(1 << 63, 0x3fff));
    assert_eq!(result, number(3 << 62, 0x4000));
    assert_eq!(env.flags, 0);
}

/// Returns the status word after `code` with ST(0) denormal, ST(1) one, all exceptions masked except the denormal one,
/// and C0 to C3 set.
fn conditions_after(code: &[u8]) -> u16 {
    let mut rig = Rig::user();
    let fpu = &mut rig.cpu.fpu;
    (fpu.fcw, fpu.fsw, fpu.ftw) = (0x37d, 0x4700, 3);
    (fpu.mantissa[0], fpu.sign_exp[0]) = (1, 0);
    (fpu.mantissa[1], fpu.sign_exp[1]) = (1 << 63, 0x3fff);
    assert_eq!(rig.run_code(code), Stop::End);
    rig.cpu.fpu.fsw
}

#[test]
fn a_remainder_that_an_unmasked_denormal_stops_keeps_its_conditions() {
    // fprem; fprem1: ES, B and DE are raised, C2 says that nothing is left to do.
    assert_eq!(conditions_after(&[0xd9, 0xf8]) & !0x0200, 0xc182);
    assert_eq!(conditions_after(&[0xd9, 0xf5]) & !0x0200, 0xc182);
}

#[test]
fn a_compare_to_rflags_keeps_c1_also_where_an_unmasked_exception_stops_it() {
    // fcomi st, st(1)
    assert_eq!(conditions_after(&[0xdb, 0xf1]), 0xc782);
}
