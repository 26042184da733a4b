# What of native.py is C when it is compiled.
from slipstream.wire.request cimport Call as CCall


cpdef check_native(CCall call, bytes body, str provider)
cpdef native_usage(checked, bytes body)
