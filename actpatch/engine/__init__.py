"""The one place that runs a model: it records, plans, resumes, and checks that what it saves is exact.

Nothing here knows a task, a result's shape or a statistic.
"""
