# Losses of one number and its target, and their gradients, for the numbers of a block.


cdef inline real reciprocal(real u) noexcept nogil:
    """1 / u for u in [1, 2] without a division: what Chebyshev gives within 1 %, then Newton."""
    cdef real one = 1
    cdef real r = (<real>0.3232323232323232 * u - <real>1.4545454545454546) * u + <real>2.1212121212121211
    r += r * (one - u * r)
    r += r * (one - u * r)
    if real is double:
        r += r * (one - u * r)
    return r


cdef inline real log1p_unit(real e) noexcept nogil:
    """log(1 + e) for 0 <= e <= 1, within 1 ulp: a minimax polynomial, so that nothing depends on the size of e."""
    cdef real p
    if real is float:
        p = <float>-0.003318474015
        p = p * e + <float>0.02020458927
        p = p * e - <float>0.05766444755
        p = p * e + <float>0.1068055529
        p = p * e - <float>0.1535539578
        p = p * e + <float>0.196954002
        p = p * e - <float>0.2495858732
        p = p * e + <float>0.3333051131
        p = p * e - <float>0.4999993276
    else:
        p = -1.6598277914440267e-05
        p = p * e + 0.00019944056320965052
        p = p * e - 0.0011396118810021395
        p = p * e + 0.0041397308609861004
        p = p * e - 0.010807694136273416
        p = p * e + 0.02180784442503687
        p = p * e - 0.03587667690316385
        p = p * e + 0.05039004550401851
        p = p * e - 0.06310894739740852
        p = p * e + 0.07341389066784662
        p = p * e - 0.08212629025468092
        p = p * e + 0.09057469673792325
        p = p * e - 0.09992645708362773
        p = p * e + 0.11109849882529499
        p = p * e - 0.12499835187408333
        p = p * e + 0.1428569837158833
        p = p * e - 0.1666666557830351
        p = p * e + 0.1999999995041043
        p = p * e - 0.24999999998630903
        p = p * e + 0.3333333333331393
        p = p * e - 0.499999999999999
    return e + e * e * p


cdef inline void bce_with_logits(
    const real* x, const real* y, const real* weight, const real* pos_weight, Py_ssize_t count, real* f, real* e
) noexcept nogil:
    """(1 - y) softplus(x) + p y softplus(-x), a sum of terms of one sign; e = exp(-|x|)."""
    cdef real above, below, off, on, z, zero = 0, one = 1
    cdef Py_ssize_t j
    for j in range(count):
        z = x[j]
        off, on = one - y[j], pos_weight[j] * y[j]
        above, below = z if z > zero else zero, zero if z > zero else -z
        e[j] = exp_negative(<real>-(above + below))
        f[j] = weight[j] * (off * above + on * below + (off + on) * log1p_unit(e[j]))


cdef inline void bce_with_logits_gradient(
    const real* x, const real* y, const real* weight, const real* pos_weight, const real* scale, Py_ssize_t count,
    real* g,
) noexcept nogil:
    """(1 - y) sigmoid(x) - p y sigmoid(-x), from exp(-|x|)."""
    cdef real likely, unlikely, off, on, z, zero = 0, one = 1
    cdef Py_ssize_t j
    for j in range(count):
        z = x[j]
        off, on = one - y[j], pos_weight[j] * y[j]
        likely = reciprocal(one + g[j])
        unlikely = g[j] * likely
        g[j] = scale[j] * weight[j] * (
            off * (likely if z > zero else unlikely) - on * (unlikely if z > zero else likely)
        )


cdef inline void bce(const real* x, const real* y, const real* weight, Py_ssize_t count, real* f) noexcept nogil:
    """-y log x - (1 - y) log(1 - x), each logarithm at least -100."""
    cdef real p, log_p, log_rest, one = 1, least = -100
    cdef Py_ssize_t j
    for j in range(count):
        p = x[j]
        log_p = log_of(p)
        log_p = least if log_p < least else log_p
        log_rest = log1p_above(<real>-p)
        log_rest = least if log_rest < least else log_rest
        log_rest = least if p == one else log_rest
        f[j] = weight[j] * ((y[j] - one) * log_rest - y[j] * log_p)


cdef inline void bce_gradient(
    const real* x, const real* y, const real* weight, const real* scale, Py_ssize_t count, real* g
) noexcept nogil:
    """(x - y) / (x (1 - x)), the denominator at least 1e-12."""
    cdef real product, one = 1, least = 1e-12
    cdef Py_ssize_t j
    for j in range(count):
        product = x[j] * (one - x[j])
        product = least if product < least else product
        g[j] = scale[j] * weight[j] * ((x[j] - y[j]) / product)


cdef inline void kl_div(const real* x, const real* y, const real* weight, Py_ssize_t count, real* f) noexcept nogil:
    """y (log y - x), and 0 for y = 0."""
    cdef real p, term, zero = 0
    cdef Py_ssize_t j
    for j in range(count):
        f[j] = log_of(y[j]) - x[j]
    for j in range(count):
        p = y[j]
        term = p * f[j]
        f[j] = weight[j] * (term if p != zero else zero)


cdef inline void kl_div_log(
    const real* x, const real* y, const real* weight, Py_ssize_t count, real* f, real* p
) noexcept nogil:
    """exp(y) (y - x), and 0 for exp(y) = 0; p = exp(y)."""
    cdef real q, term, zero = 0
    cdef Py_ssize_t j
    for j in range(count):
        p[j] = exp_any(y[j])
    for j in range(count):
        q = p[j]
        term = q * (y[j] - x[j])
        f[j] = weight[j] * (term if q != zero else zero)


cdef inline void kl_div_gradient(
    const real* p, const real* weight, const real* scale, Py_ssize_t count, real* g
) noexcept nogil:
    """-p, the target's probability."""
    cdef Py_ssize_t j
    for j in range(count):
        g[j] = -scale[j] * weight[j] * p[j]


cdef inline void entropy(const real* x, const real* weight, Py_ssize_t count, real* f) noexcept nogil:
    """-x log x, and 0 for x = 0."""
    cdef real term, zero = 0
    cdef Py_ssize_t j
    for j in range(count):
        term = -x[j] * log_of(x[j])
        f[j] = weight[j] * (term if x[j] != zero else zero)


cdef inline void probs_cross_entropy(
    const real* x, const real* y, const real* weight, Py_ssize_t count, real* f
) noexcept nogil:
    """-x log y, and 0 for x = 0."""
    cdef real term, zero = 0
    cdef Py_ssize_t j
    for j in range(count):
        term = -x[j] * log_of(y[j])
        f[j] = weight[j] * (term if x[j] != zero else zero)


cdef inline void kl_divergence(
    const real* x, const real* y, const real* weight, Py_ssize_t count, real* f
) noexcept nogil:
    """x log(x / y), and 0 for x = 0; numbers close to each other by way of their difference, which is exact."""
    cdef real near, apart, term, zero = 0, half = 0.5, twice = 1.5
    cdef Py_ssize_t j
    for j in range(count):
        near = log1p_above(<real>((x[j] - y[j]) / y[j]))
        apart = log_of(x[j]) - log_of(y[j])
        term = x[j] * (near if half * y[j] < x[j] < twice * y[j] else apart)
        f[j] = weight[j] * (term if x[j] != zero else zero)


cdef inline void outside(const real* x, Py_ssize_t count, real* f) noexcept nogil:
    """0 in [0, 1], else 1, nan included."""
    cdef real zero = 0, one = 1, within
    cdef Py_ssize_t j
    for j in range(count):
        within = zero if x[j] <= one else one
        f[j] = within if x[j] >= zero else one
