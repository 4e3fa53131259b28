-- name: sum_usage_trees
WITH RECURSIVE tree (top_job_id, job_id) AS (
    SELECT value, value FROM json_each(:job_ids)
    UNION ALL
    SELECT tree.top_job_id, job.job_id FROM tree JOIN job ON job.parent_job_id = tree.job_id
)
SELECT tree.top_job_id, sum(usage_job.calls), sum(usage_job.cost_microusd), sum(usage_job.bound_microusd)
FROM tree JOIN usage_job ON usage_job.job_id = tree.job_id GROUP BY tree.top_job_id
