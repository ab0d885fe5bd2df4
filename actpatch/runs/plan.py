"""x"""


class Plan: ...


def plan_of(*a): ...
