-- name: sum_usage_trees
WITH RECURSIVE tree (top_job_id, job_id) AS (
    SELECT value, value FROM jsonb_array_elements_text(:job_ids::jsonb)
    UNION ALL
    SELECT tree.top_job_id, job.job_id FROM tree JOIN job ON job.parent_job_id = tree.job_id
)
SELECT tree.top_job_id, sum(usage_job.calls)::bigint, sum(usage_job.cost_microusd)::bigint,
    sum(usage_job.bound_microusd)::bigint
FROM tree JOIN usage_job ON usage_job.job_id = tree.job_id GROUP BY tree.top_job_id
